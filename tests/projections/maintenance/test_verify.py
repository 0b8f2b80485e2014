"""A read model is compared with its replay, at one position, and differences are shown."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from infra.event_log.log import Log
from projections.billing import BILLING
from projections.engine.projection import Projection
from projections.engine.rows import stored
from projections.entitlements import ENTITLEMENTS, EntitlementRow
from projections.maintenance.runner import running
from projections.maintenance.verify import verify
from projections.orders import ORDERS
from tests.projections.maintenance.conftest import append, each_projection, meanwhile, tables_in
from tests.support.examples import requested
from tests.support.given_domain import but

pytestmark = pytest.mark.long


@pytest.fixture
def owner_url(copy_of_dozen: str) -> str:
    """The database of these tests, with its owner's login."""
    return copy_of_dozen


@each_projection
def test_a_read_model_that_agrees_with_the_log_is_verified(log: Log, database_url: str, projection: Projection) -> None:
    found = verify(database_url, log, projection, processes=1)
    assert (found.ok, found.differences, found.position) == (True, [], log.head())
    assert sum(found.rows.values()) > 0


def test_a_changed_deleted_or_added_row_is_shown_beside_its_replay(
    log: Log, database_url: str, conn: Connection[Any]
) -> None:
    first, second = stored(conn, EntitlementRow)[:2]
    conn.execute("UPDATE read.entitlements SET total = total + 1 WHERE (package_id, service) = (%s, %s)", first.key())
    conn.execute("DELETE FROM read.entitlements WHERE (package_id, service) = (%s, %s)", second.key())
    conn.execute(
        "INSERT INTO read.entitlements SELECT 'pkg-zzz', service, account_id, flat, total, allocated, valid_until "
        "FROM read.entitlements LIMIT 1"
    )
    found = verify(database_url, log, ENTITLEMENTS, processes=1)
    assert not found.ok
    by_package = {(d.key["package_id"], d.key["service"]): d for d in found.differences}
    assert len(by_package) == 3
    changed = by_package[first.key()]  # type: ignore[index]  # a key of two strings
    assert changed.live is not None
    assert changed.replay is not None
    assert (changed.live["total"], changed.replay["total"]) == (first.total + 1, first.total)
    assert by_package[second.key()].live is None  # type: ignore[index]  # as above
    (added,) = (d for d in found.differences if d.key["package_id"] == "pkg-zzz")
    assert added.replay is None
    assert stored(conn, EntitlementRow, package_id="pkg-zzz")
    assert tables_in(conn, "shadow", "scratch") == set()


def test_a_read_model_that_keeps_moving_is_verified_at_one_position(log: Log, database_url: str) -> None:
    count = 0

    def write_on() -> None:
        nonlocal count
        count += 1
        append(log, f"order-{count}", but(requested, order_id=f"order-{count}"))

    with running(database_url, log), meanwhile(write_on) as wrong:
        found = [verify(database_url, log, projection, processes=1) for projection in (ORDERS, BILLING, ORDERS)]
    assert wrong == []
    assert [verified.ok for verified in found] == [True] * 3
    assert found[2].position > found[0].position
