"""The reporting views: stable, commented, correct and read-only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from infra.postgres.connections import AUDITOR, connect
from projections.billing import BillingDocumentRow, revenue
from projections.engine.rows import stored
from projections.entitlements import entitlements_of
from projections.maintenance.runner import PROJECTIONS
from projections.orders import OrderRow
from projections.timeline import TimelineRow
from tests.projections.conftest import laid
from tests.projections.engine.test_batches import projected
from tests.support.databases import ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW, no_longer_fits
from tests.support.given_domain import but
from tests.support.histories import ACCOUNTS, told

VIEWS = {
    "allocations",
    "billing_documents",
    "entitlements",
    "events",
    "invoice_link_attempts",
    "invoice_links",
    "order_lines",
    "orders",
    "payments",
    "projections",
    "receivables",
    "revenue",
    "skipped_events",
    "timeline",
}
DOCUMENTED = Path(__file__).parents[2] / "docs" / "reporting.md"


@pytest.fixture(scope="module")
def owner(servers: ServerAddresses, template: str) -> Iterator[Connection[Any]]:
    """A connection as the owner of a database with read models."""
    with (
        fresh_database(servers, template) as owner_url,
        psycopg.connect(owner_url, autocommit=True, row_factory=dict_row) as owner,
    ):
        with psycopg.connect(owner_url, autocommit=True) as plain, connect(as_program(owner_url)) as conn:
            log = laid(plain, told(4, 500))
            for projection in PROJECTIONS:
                projected(conn, log, projection)
        yield owner


@pytest.fixture
def reader(owner: Connection[Any]) -> Iterator[Connection[Any]]:
    """The same with the role of a report reader."""
    owner.execute("SET ROLE trunkline_reader")
    yield owner
    owner.execute("RESET ROLE")


def rows(conn: Connection[Any], query: str) -> list[dict[str, Any]]:
    return conn.execute(query.encode()).fetchall()


def test_every_view_and_every_column_has_a_comment(owner: Connection[Any]) -> None:
    found = rows(
        owner,
        "SELECT c.relname, a.attname, obj_description(c.oid) AS view_said, col_description(c.oid, a.attnum) AS said "
        "FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 "
        "WHERE c.relnamespace = 'reporting'::regnamespace",
    )
    assert {row["relname"] for row in found} == VIEWS
    assert [row for row in found if not (row["said"] and row["view_said"])] == []


def test_the_document_names_every_view_and_every_column(owner: Connection[Any]) -> None:
    text = DOCUMENTED.read_text(encoding="utf-8")
    found = rows(
        owner, "SELECT table_name AS t, column_name AS c FROM information_schema.columns WHERE table_schema='reporting'"
    )
    assert [row for row in found if f"`{row['t']}`" not in text or f" {row['c']}" not in text] == []


def test_a_reader_reads_every_view_and_nothing_else(reader: Connection[Any]) -> None:
    for view in VIEWS - {"receivables", "skipped_events"}:
        assert rows(reader, f"SELECT * FROM reporting.{view} LIMIT 1"), view
    for statement in (
        "SELECT * FROM read.orders",
        "SELECT * FROM log.events",
        "SELECT * FROM log.documents",
        "UPDATE reporting.orders SET state = 'lost'",
        "DELETE FROM reporting.timeline",
        "SELECT projection.take_place(ARRAY['orders'])",
        "CREATE TABLE reporting.mine (one int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(statement.encode())


def test_an_auditor_reads_them_too(owner: Connection[Any]) -> None:
    owner.execute(f"SET ROLE {AUDITOR}".encode())
    try:
        assert {row["count"] > 0 for row in rows(owner, "SELECT count(*) FROM reporting.events")} == {True}
    finally:
        owner.execute("RESET ROLE")


def test_the_views_agree_with_the_read_models(reader: Connection[Any], owner: Connection[Any]) -> None:
    shown = rows(reader, "SELECT * FROM reporting.entitlements ORDER BY package_id, service")
    owner.execute("RESET ROLE")
    said = [asdict(line) for account in ACCOUNTS for line in entitlements_of(owner, account)]
    expected = sorted(said, key=lambda line: (line["package_id"], line["service"]))
    for view, line in zip(shown, expected, strict=True):
        # The view also shows extensions as over-allocated if only the Enterprise share is.
        same = ("package_id", "service", "total", "allocated", "available", "valid_until")
        assert {column: view[column] for column in same} == {column: line[column] for column in same}
        assert view["over_allocated"] >= line["over_allocated"]

    sums = rows(owner, "SELECT * FROM reporting.revenue")
    by_month: dict[tuple[str, str, str], int] = {}
    for line in sums:
        key = (f"{line['month']:%Y-%m}", line["service"], line["currency"])
        by_month[key] = by_month.get(key, 0) + line["net_minor"]
    assert by_month == revenue(stored(owner, BillingDocumentRow))

    lines = rows(
        owner, "SELECT order_id, sum(amount_minor)::bigint AS net FROM reporting.order_lines GROUP BY order_id"
    )
    assert {line["order_id"]: line["net"] for line in lines} == {
        o.order_id: o.net_minor for o in stored(owner, OrderRow)
    }


def test_the_log_is_decoded_and_an_event_with_invalid_json_hides_no_other(
    owner: Connection[Any],
) -> None:
    assert len(rows(owner, "SELECT 1 FROM reporting.events WHERE state ->> 'order_id' IS NOT NULL")) > 50
    with owner.transaction(force_rollback=True):
        poison = but(no_longer_fits, explanation="a\x00b").model_dump_json().encode()
        owner.execute(
            "INSERT INTO log.events SELECT 1 + max(position), 'order-poison', 1, 'order.PaymentSetAside.v1', %s, %s, "
            "'acme', gen_random_uuid(), 'wish', NULL, 'admin:ada', max(hash) FROM log.events",
            (poison, NOW),
        )
        found = rows(owner, "SELECT state FROM reporting.events WHERE stream = 'order-poison'")
        assert found == [{"state": None}]
        assert len(rows(owner, "SELECT state FROM reporting.events")) == len(stored(owner, TimelineRow)) + 2


def test_the_progress_of_each_read_model_can_be_queried_in_sql(reader: Connection[Any]) -> None:
    found = {row["name"]: row for row in rows(reader, "SELECT * FROM reporting.projections")}
    assert {projection.name for projection in PROJECTIONS} <= found.keys()
    assert {(row["lag"], row["halted_before"], row["skipped"]) for row in found.values()} == {(0, None, 0)}
