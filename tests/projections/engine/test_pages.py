"""Paged queries: every row once and in order, by cursors that belong to their query, and with an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, Cursor
from psycopg.conninfo import conninfo_to_dict

from infra.postgres.connections import connect
from infra.postgres.prepared import Statement
from projections.allocations import allocations
from projections.billing import (
    BillingDocumentRow,
    ReceivableRow,
    ageing,
    documents,
    owed_by_age,
    owed_orders,
    revenue,
    revenue_by_month,
    set_aside,
)
from projections.engine.pages import BadCursor, FilterCannotBe, Page
from projections.engine.rows import Row, stored
from projections.entitlements import EntitlementRow, entitlements_of, over_allocated
from projections.invoice_links import attempts, links
from projections.maintenance.runner import PROJECTIONS
from projections.orders import OrderRow, Search, search, unpaid_in_time
from projections.timeline import timeline
from tests.projections.conftest import laid
from tests.projections.engine.test_batches import projected
from tests.support.databases import ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW
from tests.support.histories import told

pytestmark = pytest.mark.long

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
Ask = Callable[[Connection[Any], str | None, int], Page[Any]]

QUESTIONS: dict[str, Ask] = {
    "orders": lambda conn, cursor, size: search(conn, Search(currency="EUR"), cursor, size),
    "orders of an account": lambda conn, cursor, size: search(conn, Search(account_id="acme"), cursor, size),
    "owed": lambda conn, cursor, size: owed_orders(conn, None, cursor, size),
    "owed by an account": lambda conn, cursor, size: owed_orders(conn, "slugworth", cursor, size),
    "set aside": lambda conn, cursor, size: set_aside(conn, None, cursor, size),
    "set aside of an account": lambda conn, cursor, size: set_aside(conn, "acme", cursor, size),
    "documents": lambda conn, cursor, size: documents(conn, "acme", cursor, size),
    "over-allocated": over_allocated,
    "allocations": lambda conn, cursor, size: allocations(conn, "acme", None, cursor, size),
    "links": lambda conn, cursor, size: links(conn, "acme", cursor, size),
    "attempts": lambda conn, cursor, size: attempts(conn, "acme", cursor, size),
    "timeline": lambda conn, cursor, size: timeline(conn, "acme", cursor, size),
}
each_question = pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)


@pytest.fixture(scope="module")
def shown(servers: ServerAddresses, template: str) -> Iterator[Connection[Any]]:
    """The read models of a history with everything in it. Do not change them."""
    with fresh_database(servers, template) as owner_url, connect(as_program(owner_url)) as conn:
        with psycopg.connect(owner_url, autocommit=True) as owner:
            log = laid(owner, told(4, 500))
        for projection in PROJECTIONS:
            projected(conn, log, projection)
        yield conn


def every(ask: Callable[[str | None], Page[Any]]) -> list[Row]:
    rows, cursor = list[Row](), None
    while True:
        page = ask(cursor)
        rows += page.rows
        if page.next is None:
            return rows
        cursor = page.next


# --- pages ---------------------------------------------------------------------------------------------------------


@each_question
@pytest.mark.parametrize("size", [1, 2, 7])
def test_pages_return_every_row_once_in_the_order_of_one_large_page(
    shown: Connection[Any], ask: Ask, size: int
) -> None:
    whole = ask(shown, None, 1000)
    assert whole.next is None
    assert every(lambda cursor: ask(shown, cursor, size)) == list(whole.rows)


def test_every_query_finds_rows_in_this_history(shown: Connection[Any]) -> None:
    found = {name: len(ask(shown, None, 1000).rows) for name, ask in QUESTIONS.items()}
    assert [name for name, count in found.items() if not count] == []


def test_rows_added_meanwhile_neither_shift_nor_repeat_a_page(shown: Connection[Any]) -> None:
    first = search(shown, Search(), size=3)
    (newest,) = search(shown, Search(), size=1).rows
    with shown.transaction(force_rollback=True):
        shown.execute(
            "INSERT INTO read.orders SELECT (jsonb_populate_record(o, jsonb_build_object('order_id', 'order-newer', "
            "'requested_at', o.requested_at + interval '1 hour'))).* FROM read.orders AS o WHERE order_id = %s",
            (newest.order_id,),
        )
        second = search(shown, Search(), first.next, size=3)
    assert not {row.order_id for row in first.rows} & {row.order_id for row in second.rows}
    assert "order-newer" not in {row.order_id for row in second.rows}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cursor=st.text(max_size=80) | st.binary(max_size=60).map(lambda some: some.hex()))
def test_an_invented_cursor_is_refused_in_one_sentence(shown: Connection[Any], cursor: str) -> None:
    with pytest.raises(BadCursor, match=r"^The cursor does not belong to this query; leave it out"):
        search(shown, Search(), cursor)


def test_a_cursor_of_another_query_is_refused(shown: Connection[Any]) -> None:
    cursor = search(shown, Search(account_id="acme"), size=1).next
    assert cursor
    assert search(shown, Search(account_id="acme"), cursor, size=2).rows
    for other in (Search(), Search(account_id="slugworth"), Search(account_id="acme", state="placed")):
        with pytest.raises(BadCursor):
            search(shown, other, cursor)
    with pytest.raises(BadCursor):
        documents(shown, "acme", cursor)
    with pytest.raises(BadCursor):
        search(shown, Search(account_id="acme"), cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB"))


@pytest.mark.parametrize("size", [0, -1, 1001])
def test_an_invalid_page_size_is_refused(shown: Connection[Any], size: int) -> None:
    with pytest.raises(FilterCannotBe, match="A page has 1 to 1000 rows"):
        search(shown, Search(), size=size)


# --- filters -------------------------------------------------------------------------------------------------------


def test_an_order_is_found_by_each_of_its_properties_and_by_nothing_else(shown: Connection[Any]) -> None:
    orders = stored(shown, OrderRow)
    cases: list[tuple[Search, Callable[[OrderRow], bool]]] = [
        (Search(account_id="acme"), lambda o: o.account_id == "acme"),
        (Search(state="fulfilled"), lambda o: o.state == "fulfilled"),
        (Search(method="offline"), lambda o: o.method == "offline"),
        (Search(currency="EUR", at_least_minor=1000_00), lambda o: o.total_minor >= 1000_00),
        (Search(currency="EUR", at_most_minor=1000_00), lambda o: o.total_minor <= 1000_00),
        (Search(requested_from=NOW + timedelta(days=9)), lambda o: o.requested_at >= NOW + timedelta(days=9)),
        (Search(requested_before=NOW + timedelta(days=9)), lambda o: o.requested_at < NOW + timedelta(days=9)),
        (Search(account_id="acme", state="placed"), lambda o: (o.account_id, o.state) == ("acme", "placed")),
        (Search(currency="USD", at_least_minor=0), lambda o: o.currency == "USD"),
    ]
    for wanted, fits in cases:
        found = every(lambda cursor, wanted=wanted: search(shown, wanted, cursor, size=50))  # type: ignore[misc]
        expected = sorted(filter(fits, orders), key=lambda o: (o.requested_at, o.order_id), reverse=True)
        assert found == expected
    numbered = next(order for order in orders if order.pi_number)
    assert numbered.pi_number
    assert search(shown, Search(pi_number=numbered.pi_number.lower())).rows == [numbered]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"state": "lost"}, "'lost' is not a state of an order; the states are requested, placed"),
        ({"method": "barter"}, "'barter' is not a payment method; the methods are paypal, card, offline."),
        ({"at_least_minor": 5}, "An amount needs its currency; add it, as in EUR."),
        ({"currency": "EUR", "at_least_minor": 5, "at_most_minor": 4}, "No amount is at least 5 and at most 4."),
        ({"currency": "EUR", "at_most_minor": -1}, "No amount is at least 0 and at most -1."),
        ({"requested_from": NOW, "requested_before": NOW}, "Nothing is requested from 2026-10-20"),
        ({"requested_from": datetime(2026, 1, 1)}, "A time needs its UTC offset"),  # noqa: DTZ001 - the mistake itself
    ],
)
def test_an_impossible_filter_is_refused_in_one_sentence(wanted: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FilterCannotBe, match=re.escape(sentence)):
        Search(**wanted)


# --- sums ----------------------------------------------------------------------------------------------------------


def test_revenue_by_month_is_the_sum_of_the_documents(shown: Connection[Any]) -> None:
    expected = revenue(stored(shown, BillingDocumentRow))
    found = revenue_by_month(shown, BEGIN, END)
    assert {(line.month, line.service, line.currency): line.net_minor for line in found} == expected
    assert revenue_by_month(shown, BEGIN, BEGIN + timedelta(days=1)) == []
    of_acme = revenue_by_month(shown, BEGIN, END, "acme")
    assert {(line.month, line.service, line.currency): line.net_minor for line in of_acme} == revenue(
        stored(shown, BillingDocumentRow, account_id="acme")
    )
    with pytest.raises(FilterCannotBe, match="There is no revenue from 2027-01-01 on and before 2026-01-01"):
        revenue_by_month(shown, END, BEGIN)


@pytest.mark.parametrize("days", [0, 1, 30, 31, 60, 61, 90, 91, 400])
def test_debts_are_aged_the_same_in_the_table_and_in_memory(shown: Connection[Any], days: int) -> None:
    at = NOW + timedelta(days=days, hours=5)
    assert owed_by_age(shown, at) == ageing(stored(shown, ReceivableRow), at)
    assert owed_by_age(shown, at, "acme") == ageing(stored(shown, ReceivableRow, account_id="acme"), at)


def test_thirty_days_are_in_the_first_age_band_and_the_next_day_is_in_the_second() -> None:
    row = ReceivableRow("order-1", "acme", "EUR", 100, NOW, True, None, NOW)
    ages = [ageing([row], NOW + timedelta(days=days))[0].days for days in (0, 30, 31, 60, 61, 90, 91)]
    assert ages == ["0-30", "0-30", "31-60", "31-60", "61-90", "61-90", "over 90"]


def test_over_allocated_rows_are_those_whose_answer_says_so(shown: Connection[Any]) -> None:
    rows = stored(shown, EntitlementRow)
    found = {row.key() for row in over_allocated(shown, size=1000).rows}
    said = {
        (line.package_id, "extensions" if line.service == "enterprise_plan" else line.service)
        for account in ("acme", "slugworth")
        for line in entitlements_of(shown, account)
        if line.over_allocated
    }
    assert found == said
    assert found <= {row.key() for row in rows}


# --- plans ---------------------------------------------------------------------------------------------------------

TABLES = [table.TABLE for projection in PROJECTIONS for table in projection.tables]
# Sequential names have the same length, so that they arrive in sort order, which makes index builds faster.
MILLION = """
SET work_mem = '64MB';
INSERT INTO shadow.orders (order_id, account_id, package_id, state, method, pi_number, currency, net_minor, tax_minor,
                         total_minor, refunded_minor, lines, requested_at, expires_at)
  SELECT 'order-' || 1000000 + n, 'account-' || 100000 + n % 20000, 'pkg-' || 100000 + n % 20000,
         (ARRAY['fulfilled','placed','expired','cancelled','requested'])[1 + (n % 97) % 5],
         (ARRAY['paypal','card','offline'])[1 + n % 3], CASE WHEN n % 3 = 2 THEN 'PI-' || 1000000 + n END, 'EUR', n, 0,
         n % 900000, 0, '[]', timestamptz '2020-01-01' + n * interval '3 minutes',
         timestamptz '2020-01-15' + n * interval '3 minutes'
    FROM generate_series(1, 1000000) AS n;
INSERT INTO shadow.receivables (order_id, account_id, currency, amount_minor, owed, owed_since, expires_at)
  SELECT order_id, account_id, currency, total_minor, n % 50 = 0, requested_at, expires_at
    FROM (SELECT o.*, row_number() OVER () AS n FROM shadow.orders AS o) AS o;
INSERT INTO shadow.billing_documents (document_id, order_id, account_id, kind, number, currency, net_minor, tax_minor,
                                    total_minor, by_service, issued_at, sha256)
  SELECT 'invoice-' || order_id, order_id, account_id, 'invoice', 'YT-' || order_id, 'EUR', net_minor, 0, net_minor,
         '{"extensions": 1}', requested_at, '' FROM shadow.orders;
INSERT INTO shadow.payments (order_id, capture_id, account_id, method, currency, amount_minor, refunded_minor,
                             set_aside, captured_at)
  SELECT order_id, 'capture', account_id, 'card', 'EUR', total_minor, 0,
         CASE WHEN total_minor % 200 = 0 THEN 'expired' END, requested_at FROM shadow.orders;
INSERT INTO shadow.entitlements (package_id, service, account_id, flat, total, allocated, valid_until, over_allocated)
  SELECT 'pkg-' || 100000 + n / 5, CASE n % 5 WHEN 0 THEN 'extensions' ELSE 'service_' || n % 5 END,
         'account-' || 100000 + n / 5, false, 10, 5, '2027-01-01', (n % 1000 = 0)::int
    FROM generate_series(1, 1000000) AS n;
INSERT INTO shadow.allocations (package_id, pbx_id, service, account_id, pbx_name, plan, assigned, drawn)
  SELECT 'pkg-' || 100000 + n / 5, 'pbx-' || 1000000 + n / 2, 'service_' || n % 2, 'account-' || 100000 + n / 5, 'PBX',
         'enterprise', 1, 1
    FROM generate_series(1, 1000000) AS n;
INSERT INTO shadow.invoice_links (link_id, invoice_id, order_id, account_id, ordinal, state, issued_at, expires_at)
  SELECT 'link-' || order_id, 'invoice-' || order_id, order_id, account_id, 1, 'issued', requested_at, expires_at
    FROM shadow.orders;
INSERT INTO shadow.invoice_link_attempts (link_id, position, account_id, outcome, at)
  SELECT 'link-order-' || 1000000 + n, n, 'account-' || 100000 + n % 20000, 'consumed', timestamptz '2020-01-01'
    FROM generate_series(1, 1000000) AS n;
INSERT INTO shadow.timeline (position, account_id, stream, version, topic, event_id, actor, correlation_id, recorded_at)
  SELECT n, 'account-' || 100000 + n % 20000, 'order-' || 1000000 + n, 1, 'topic', lpad(n::text, 32, '0')::uuid,
         'admin:ada', 'wish', timestamptz '2020-01-01' + n * interval '3 minutes' FROM generate_series(1, 1000000) AS n;
"""


@pytest.fixture(scope="module")
def million(servers: ServerAddresses, template: str) -> Iterator[Connection[Any]]:
    """Read models with a million rows in each table."""
    with fresh_database(servers, template) as owner_url:
        name = conninfo_to_dict(owner_url)["dbname"]
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
            # Rows first, then indexes, then the swap, like a rebuild, because that is fastest. The tables are unlogged,
            # which halves the writing and leads to the same plans.
            for table in TABLES:
                owner.execute("SELECT projection.make_table('shadow', %s)", (table,))
                owner.execute(f"ALTER TABLE shadow.{table} SET UNLOGGED".encode())
            owner.execute("SET maintenance_work_mem = '512MB'")
            owner.execute(MILLION.encode())
            for table in TABLES:
                owner.execute("SELECT projection.index_table('shadow', %s)", (table,))
            owner.execute("SELECT projection.take_place(%s)", (TABLES,))
        with connect(as_program(owner_url)) as conn:
            yield conn


DAY = datetime(2023, 5, 1, tzinfo=UTC)
PLANNED: dict[str, Callable[[Connection[Any]], object]] = {
    "entitlements": lambda conn: stored(conn, EntitlementRow, account_id="account-100007"),
    "over-allocated": over_allocated,
    "allocations": lambda conn: allocations(conn, "account-100007"),
    "allocations of a PBX": lambda conn: allocations(conn, "account-100007", "pbx-1000018"),
    "orders": lambda conn: search(conn, Search()),
    "orders by account": lambda conn: search(conn, Search(account_id="account-100007")),
    "orders by account and state": lambda conn: search(conn, Search(account_id="account-100007", state="placed")),
    "orders by state": lambda conn: search(conn, Search(state="placed")),
    "orders by method": lambda conn: search(conn, Search(method="offline")),
    "orders by PI number": lambda conn: search(conn, Search(pi_number="PI-1500000")),
    "orders by date": lambda conn: search(conn, Search(requested_from=DAY, requested_before=DAY + timedelta(days=1))),
    "orders by amount": lambda conn: search(conn, Search(currency="EUR", at_least_minor=7, at_most_minor=9)),
    "orders not paid in time": lambda conn: unpaid_in_time(conn, datetime(2020, 1, 16, tzinfo=UTC)),
    "owed": owed_orders,
    "owed by an account": lambda conn: owed_orders(conn, "account-100007"),
    "owed by age": lambda conn: owed_by_age(conn, DAY),
    "owed by age, of an account": lambda conn: owed_by_age(conn, DAY, "account-100007"),
    "set aside": set_aside,
    "set aside of an account": lambda conn: set_aside(conn, "account-100007"),
    "documents": lambda conn: documents(conn, "account-100007"),
    "a document by its number": lambda conn: stored(conn, BillingDocumentRow, number="YT-order-1000007"),
    "revenue of a month": lambda conn: revenue_by_month(conn, DAY, DAY + timedelta(days=31)),
    "revenue of an account": lambda conn: revenue_by_month(conn, DAY, DAY + timedelta(days=365), "account-100007"),
    "links": lambda conn: links(conn, "account-100007"),
    "attempts": lambda conn: attempts(conn, "account-100007"),
    "timeline": lambda conn: timeline(conn, "account-100007"),
    "the rows that a batch of orders touches": lambda conn: stored(
        conn, OrderRow, order_id=[f"order-{1_000_000 + n}" for n in range(50)]
    ),
    "the rows that a batch of documents touches": lambda conn: stored(
        conn, BillingDocumentRow, order_id=[f"order-{1_000_000 + n}" for n in range(50)]
    ),
    "the rows that a batch of packages touches": lambda conn: stored(
        conn, EntitlementRow, package_id=[f"pkg-{100_000 + n}" for n in range(50)]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("ask", PLANNED.values(), ids=PLANNED)
def test_at_a_million_rows_every_query_uses_an_index_and_reads_few_rows(
    million: Connection[Any], ask: Callable[[Connection[Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []

    def noted(_conn: object, statement: Statement, texts: Sequence[bytes], _row: object) -> list[Any]:
        asked.append((statement.query.replace(b"$1", b"%s"), [text.decode() for text in texts]))
        return []

    monkeypatch.setattr("projections.entitlements.ask", noted)
    usual = million.cursor_factory

    class Noting(Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Noting:  # noqa: ANN401 - any arguments
            asked.append((query, params))
            super().execute(query, params, **kwargs)
            return self

    million.cursor_factory = Noting
    try:
        ask(million)
    finally:
        million.cursor_factory = usual
    ((query, parameters),) = asked
    text = query.decode() if isinstance(query, bytes) else query if isinstance(query, str) else query.as_string()
    with million.cursor() as cursor:
        plan = cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {text}".encode(), parameters).fetchall()
    lines = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "Seq Scan" not in lines
    assert "Index" in lines
    looked_at = [float(n) for n in re.findall(r"actual rows=([\d.]+)", lines)]
    removed = [int(n) for n in re.findall(r"Rows Removed by Filter: (\d+)", lines)]
    assert max([*looked_at, *removed]) < 25_000, lines
