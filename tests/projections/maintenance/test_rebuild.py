"""Read models rebuilt beside the live ones: nothing half-built is visible, nothing is missed or doubled."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql

from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connect
from infra.postgres.positions import position_of
from projections.engine.projection import Projection
from projections.engine.rows import Row, stored
from projections.maintenance import rebuild as rebuild_module
from projections.maintenance import replay
from projections.maintenance.rebuild import Rebuilt, rebuild
from projections.maintenance.replay import CannotRebuild
from projections.maintenance.runner import PROJECTIONS, running, wait
from projections.orders import ORDERS, OrderRow
from tests.projections.maintenance.conftest import WELL_S, append, each_projection, meanwhile, tables_in
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import placed, requested
from tests.support.given_domain import but

pytestmark = pytest.mark.long


@pytest.fixture
def owner_url(copy_of_dozen: str) -> str:
    """The database of these tests, with its owner's login."""
    return copy_of_dozen


def rows(conn: Connection[Any], projection: Projection) -> dict[str, list[Row]]:
    return {table.TABLE: stored(conn, table) for table in projection.tables}


def assert_equals_a_replay(conn: Connection[Any], log: Log, projection: Projection) -> None:
    everything = projection.folded(log.history())
    for table in projection.tables:
        replayed = sorted(everything.of(table), key=lambda row: str(row.key()))
        assert sorted(stored(conn, table), key=lambda row: str(row.key())) == replayed


# --- rebuilt -------------------------------------------------------------------------------------------------------


@each_projection
def test_a_rebuild_restores_the_same_rows(
    log: Log, database_url: str, conn: Connection[Any], projection: Projection
) -> None:
    before = rows(conn, projection)
    done = rebuild(database_url, log, [projection], processes=1)
    assert rows(conn, projection) == before
    assert (done.position, position_of(conn, projection.name)) == (log.head(), log.head())
    assert done.rows == {name: len(some) for name, some in before.items()}
    assert tables_in(conn, "shadow", "scratch") == set()


def test_all_projections_are_rebuilt_in_one_pass_over_the_log(
    log: Log, database_url: str, conn: Connection[Any]
) -> None:
    before = {table: len(some) for projection in PROJECTIONS for table, some in rows(conn, projection).items()}
    done = rebuild(database_url, log, PROJECTIONS, processes=2)
    for projection in PROJECTIONS:
        assert_equals_a_replay(conn, log, projection)
    assert (done.position, done.rows) == (log.head(), before)
    assert tables_in(conn, "shadow", "scratch") == set()


def test_a_rebuild_repairs_wrong_rows(log: Log, database_url: str, conn: Connection[Any]) -> None:
    conn.execute("UPDATE read.orders SET total_minor = 1")
    conn.execute("DELETE FROM read.orders WHERE state = 'fulfilled'")
    rebuild(database_url, log, [ORDERS], processes=1)
    assert_equals_a_replay(conn, log, ORDERS)


def test_an_empty_log_is_rebuilt_quickly(servers: ServerAddresses, template: str) -> None:
    with fresh_database(servers, template) as owner_url:
        url = as_program(owner_url)
        with postgres_log(url, master_key=MASTER_KEY) as log, connect(url) as conn:
            assert rebuild(url, log, PROJECTIONS).position == 0
            assert stored(conn, OrderRow) == []


def looks_of(conn: Connection[Any]) -> dict[str, list[Any]]:
    """Everything about the live tables except rows: columns, keys, indexes, grants, comments."""
    queries = {
        "columns": "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'read' ORDER BY table_name, ordinal_position",
        "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'read' ORDER BY indexname",
        "keys": "SELECT conrelid::regclass::text AS t, conname, pg_get_constraintdef(oid) AS d FROM pg_constraint "
        "WHERE connamespace = 'read'::regnamespace ORDER BY t, conname",
        "grants": "SELECT relname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) AS a) AS acl "
        "FROM pg_class WHERE relnamespace = 'read'::regnamespace AND relkind = 'r' ORDER BY relname",
        "comments": "SELECT relname, obj_description(oid), col_description(oid, 11) FROM pg_class "
        "WHERE relnamespace = 'read'::regnamespace AND relkind = 'r' ORDER BY relname",
        "policies": "SELECT tablename, policyname, permissive, roles::text, cmd, qual, with_check FROM pg_policies "
        "WHERE schemaname = 'read' ORDER BY tablename, policyname",
        "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'reporting' ORDER BY viewname",
        "secured": "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class "
        "WHERE relnamespace = 'read'::regnamespace AND relkind = 'r' ORDER BY relname",
    }
    return {what: conn.execute(query.encode()).fetchall() for what, query in queries.items()}


def test_the_new_tables_equal_the_old_ones_and_the_views_use_them(
    log: Log, database_url: str, owner_url: str, conn: Connection[Any]
) -> None:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE read.orders ENABLE ROW LEVEL SECURITY")
        owner.execute("CREATE POLICY seen ON read.orders FOR ALL TO trunkline_projector USING (true) WITH CHECK (true)")
        owner.execute("CREATE POLICY few ON read.orders FOR SELECT USING (account_id <> 'nobody')")
    before = looks_of(conn)
    rebuild(database_url, log, PROJECTIONS, processes=1)
    assert looks_of(conn) == before
    assert len(before["policies"]) == 2
    conn.execute("UPDATE read.orders SET state = 'seen through the view'")
    with psycopg.connect(owner_url) as owner:
        assert owner.execute("SELECT DISTINCT state FROM reporting.orders").fetchall() == [("seen through the view",)]


# --- under live writes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_under_live_writes_readers_see_the_old_tables_then_the_new_and_no_event_is_missed_or_doubled(
    log: Log, database_url: str, conn: Connection[Any]
) -> None:
    """A reader counts orders and reads the position: neither ever goes back."""
    seen: list[tuple[int, int]] = []
    count = 0
    reader = connect(database_url)

    def write_on() -> None:
        nonlocal count
        count += 1
        append(log, f"order-{count}", but(requested, order_id=f"order-{count}"))
        append(log, f"order-{count}", but(placed, order_id=f"order-{count}"))

    def read_on() -> None:
        row = reader.execute(
            "SELECT (SELECT count(*) FROM read.orders) AS orders, position FROM read.positions WHERE name = 'orders'"
        ).fetchone()
        assert row is not None
        seen.append((row["orders"], row["position"]))

    with running(database_url, log) as runners:
        with meanwhile(write_on) as writing, meanwhile(read_on) as reading:
            for _ in range(3):
                rebuild(database_url, log, PROJECTIONS, processes=2)
        assert (writing, reading) == ([], [])
        assert wait(conn, log.head(), WELL_S)
        assert [runner.halted for runner in runners] == [None] * len(PROJECTIONS)
    reader.close()
    assert count > 20
    assert seen == sorted(seen)
    orders_at = {position: orders for orders, position in seen}
    history_of = [e.position for e in log.history() if e.event.TOPIC == "order.ExpansionRequested.v1"]
    assert all(orders == sum(p <= position for p in history_of) for position, orders in orders_at.items())
    for projection in PROJECTIONS:
        assert_equals_a_replay(conn, log, projection)


def test_a_swap_waits_for_a_reader_and_lets_others_through_meanwhile(
    log: Log, database_url: str, conn: Connection[Any]
) -> None:
    with connect(database_url) as reader:
        with reader.transaction():
            before = reader.execute("SELECT count(*) AS n FROM read.orders").fetchone()
            swapping = threading.Thread(target=rebuild, args=(database_url, log, [ORDERS]), kwargs={"processes": 1})
            swapping.start()
            swapping.join(timeout=1.5)
            assert swapping.is_alive()
            assert len(stored(conn, OrderRow)) == (before or {})["n"]
        swapping.join(timeout=WELL_S)
    assert not swapping.is_alive()
    assert_equals_a_replay(conn, log, ORDERS)


def test_a_swap_that_readers_block_leaves_the_live_tables_and_continues_on_the_next_run(
    log: Log, database_url: str, conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "SWAP_WAIT_MAX_S", 0.1)
    monkeypatch.setattr(rebuild_module, "SWAP_LOCK_MS", 50)
    with connect(database_url) as reader, reader.transaction():
        stored(reader, OrderRow)
        with pytest.raises(CannotRebuild, match="readers have held its tables"):
            rebuild(database_url, log, [ORDERS], processes=1)
    append(log, "order-late", but(requested, order_id="order-late"))
    done = rebuild(database_url, log, [ORDERS], processes=1)
    assert (done.resumed, done.position) == (True, log.head())
    assert_equals_a_replay(conn, log, ORDERS)


# --- interrupted ---------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from infra.event_log.postgres_recorder import postgres_log
from projections.maintenance import replay
from projections.maintenance.rebuild import rebuild
from projections.maintenance.runner import PROJECTIONS

replay.PART_EVENTS = 200

def on_progress(stage, done, total):
    if stage == sys.argv[2] and done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

with postgres_log(sys.argv[1]) as log:
    rebuild(sys.argv[1], log, PROJECTIONS, on_progress, processes=1)
"""


def once_free(rebuilding: Callable[[], Rebuilt]) -> Rebuilt:
    """The server takes a moment to notice that a client is gone."""
    deadline = time.monotonic() + WELL_S
    while True:
        try:
            return rebuilding()
        except CannotRebuild:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "done"),
    [("accounts", 0), ("accounts", 1500), ("indexes", 3), ("the rest, and the swap", 0), ("the rest, and the swap", 2)],
)
def test_a_rebuild_killed_anywhere_resumes(
    log: Log, database_url: str, conn: Connection[Any], stage: str, done: int
) -> None:
    before = {projection.name: rows(conn, projection) for projection in PROJECTIONS}
    killed = subprocess.run([sys.executable, "-c", KILLED, database_url, stage, str(done)], timeout=60, check=False)
    assert killed.returncode == -9
    assert {projection.name: rows(conn, projection) for projection in PROJECTIONS} == before
    began_with: list[int] = []
    again = once_free(lambda: rebuild(database_url, log, PROJECTIONS, lambda _, n, __: began_with.append(n), 1))
    assert again.resumed
    assert began_with[0] >= (1500 if stage == "accounts" and done else 0)
    assert {projection.name: rows(conn, projection) for projection in PROJECTIONS} == before


def test_a_rebuild_begun_by_other_code_starts_over(
    log: Log, database_url: str, conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        rebuild(database_url, log, [ORDERS], stop, processes=1)
    monkeypatch.setattr(replay, "_fingerprint", lambda projection: f"other code of {projection.name}")
    assert not rebuild(database_url, log, [ORDERS], processes=1).resumed
    assert_equals_a_replay(conn, log, ORDERS)


def test_two_processes_do_not_rebuild_one_projection_at_once(log: Log, database_url: str) -> None:
    refused = []

    def try_too(*_: object) -> None:
        with pytest.raises(CannotRebuild, match="Another process is replaying orders"):
            rebuild(database_url, log, [ORDERS], processes=1)
        refused.append(True)

    rebuild(database_url, log, [ORDERS], try_too, processes=1)
    assert refused


def test_tables_cannot_be_created_in_another_schema(conn: Connection[Any]) -> None:
    for function in ("make_table", "index_table", "drop_table"):
        query = sql.SQL("SELECT projection.{}('read', 'orders')").format(sql.Identifier(function))
        with pytest.raises(psycopg.errors.RaiseException, match="is not a schema for rebuilt tables"):
            conn.execute(query)
