"""Keeping the read models up to date: one runner per projection, whatever happens to its connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from domain.invoice_link import LinkIssued, LinkRevoked
from domain.messages import Event
from infra.event_log.log import Change, Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import as_notifications
from infra.postgres.connections import connect, only_one
from infra.postgres.positions import position_of
from infra.recorded import Recorded
from projections.billing import BILLING
from projections.engine.poison import parked
from projections.engine.projection import Projection
from projections.engine.rows import stored
from projections.maintenance.rebuild import rebuild
from projections.maintenance.replay import CannotRebuild
from projections.maintenance.runner import PROJECTIONS, Runner, bring_up_to_date, positions, running, wait
from projections.orders import ORDERS, OrderRow
from projections.timeline import TimelineRow
from tests.support.databases import MASTER_KEY
from tests.support.examples import NOW, link_issued, no_longer_fits, opened, placed, requested, revoked
from tests.support.given_domain import but
from tests.support.given_projection import CAUSE
from tests.support.histories import tell

WELL_S = 20.0
"""A timeout that is long enough on any machine."""


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projections.maintenance.runner.RETRY_S", 0.02)
    monkeypatch.setattr("projections.maintenance.runner.RETRY_MAX_S", 0.1)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    """A reader's connection."""
    with connect(database_url) as conn:
        yield conn


@pytest.fixture
def owner(owner_url: str) -> Iterator[Connection[Any]]:
    """A connection that may terminate other sessions."""
    with psycopg.connect(owner_url, autocommit=True) as conn:
        yield conn


def append(log: Log, stream: str, *events: Event) -> int:
    """Append to the end of a stream; returns the position."""
    change = Change(stream, len(log.load(stream)), events)
    return log.append([change], account_id="acme", cause=CAUSE, at=NOW)[-1].position


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WELL_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def named(database_url: str, name: str) -> str:
    """The database address with an application name, by which its sessions are found."""
    return make_conninfo(database_url, application_name=name)


def cut_off(owner: Connection[Any], name: str) -> int:
    """Terminate the sessions of a name, like a broken connection or a server restart. Returns their number."""
    ended = owner.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = %s",
        (name,),
    )
    return len(ended.fetchall())


def assert_a_replay_shows_the_same(conn: Connection[Any], log: Log) -> None:
    for projection in PROJECTIONS:
        everything = projection.folded(log.history())
        for table in projection.tables:
            replayed = sorted(everything.of(table), key=lambda row: str(row.key()))
            assert sorted(stored(conn, table), key=lambda row: str(row.key())) == replayed


@contextmanager
def watched(database_url: str) -> Iterator[list[dict[str, int]]]:
    """Collect the positions of all projections while the context lasts."""
    seen: list[dict[str, int]] = []
    enough = threading.Event()

    def watch() -> None:
        with connect(database_url) as conn:
            while not enough.is_set():
                seen.append(dict(positions(conn)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        enough.set()
        thread.join()


# --- current -------------------------------------------------------------------------------------------------------


def test_past_and_new_events_are_projected_although_connections_are_cut(
    postgres: Log, database_url: str, conn: Connection[Any], owner: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """No projection ever moves backwards."""
    tell(postgres, seed=1, steps=30)
    with watched(database_url) as seen, running(named(database_url, "runners"), postgres) as runners:
        assert wait(conn, postgres.head(), WELL_S)
        assert_a_replay_shows_the_same(conn, postgres)
        for n in range(1, 4):
            assert eventually(lambda: cut_off(owner, "runners") >= len(PROJECTIONS))
            append(postgres, f"order-{n}", but(requested, order_id=f"order-{n}"), but(placed, order_id=f"order-{n}"))
            assert wait(conn, postgres.head(), WELL_S)
        assert_a_replay_shows_the_same(conn, postgres)
        assert [runner.halted for runner in runners] == [None] * len(PROJECTIONS)
    assert "lost its database and retries" in caplog.text
    for name in positions(conn):
        course = [moment[name] for moment in seen]
        assert course == sorted(course)


def test_while_the_database_is_down_runners_keep_trying(
    postgres: Log, database_url: str, owner_url: str, conn: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    append(postgres, "order-1", requested)
    with running(database_url, postgres) as runners:
        assert wait(conn, 1, WELL_S)
        name = conninfo_to_dict(database_url)["dbname"]
        with psycopg.connect(owner_url, dbname="postgres", autocommit=True) as server:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            assert eventually(lambda: caplog.text.count("is not currently accepting connections") > len(PROJECTIONS))
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere, connect(database_url) as reader:
            append(elsewhere, "order-1", placed)
            assert wait(reader, 2, WELL_S)
            assert [row.state for row in stored(reader, OrderRow)] == ["placed"]
        assert [runner.halted for runner in runners] == [None] * len(PROJECTIONS)


# --- one at a time -------------------------------------------------------------------------------------------------


def is_projecting(owner: Connection[Any], name: str) -> bool:
    """Whether the session of a name holds the projection lock."""
    held = owner.execute(
        "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND application_name = %s",
        (name,),
    )
    return held.fetchone() is not None


@contextmanager
def one_runner(database_url: str, log: Log, projection: Projection = ORDERS) -> Iterator[Runner]:
    runner = Runner(database_url, log, projection)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def test_a_second_runner_takes_over_if_the_first_loses_its_connection(
    postgres: Log, database_url: str, conn: Connection[Any], owner: Connection[Any]
) -> None:
    append(postgres, "order-1", requested)
    with one_runner(named(database_url, "first"), postgres) as first:
        assert eventually(lambda: is_projecting(owner, "first"))
        with one_runner(named(database_url, "second"), postgres) as second:
            append(postgres, "order-1", placed)
            assert eventually(lambda: position_of(conn, "orders") == 2)
            assert not is_projecting(owner, "second")

            first._database_url = "postgresql://127.0.0.1:1/cut_off_for_good?connect_timeout=1"
            assert cut_off(owner, "first") == 1
            assert eventually(lambda: is_projecting(owner, "second"))
            append(postgres, "order-2", but(requested, order_id="order-2"))
            assert eventually(lambda: position_of(conn, "orders") == 3)
            assert (first.halted, second.halted) == (None, None)
    assert [(row.order_id, row.state) for row in stored(conn, OrderRow)] == [
        ("order-1", "placed"),
        ("order-2", "requested"),
    ]


def test_two_runners_that_are_cut_off_in_turn_project_everything_once(
    postgres: Log, database_url: str, conn: Connection[Any], owner: Connection[Any]
) -> None:
    with (
        running(named(database_url, "first"), postgres) as some,
        running(named(database_url, "second"), postgres) as others,
    ):
        for seed, name in enumerate(["first", "second", "first", "second"], start=2):
            cut_off(owner, name)
            stream = f"order-{seed}"
            append(postgres, stream, but(requested, order_id=stream), but(placed, order_id=stream))
        assert wait(conn, postgres.head(), WELL_S)
        assert {runner.halted for runner in (*some, *others)} == {None}
    assert_a_replay_shows_the_same(conn, postgres)


# --- poison --------------------------------------------------------------------------------------------------------


def test_an_event_that_cannot_be_folded_halts_its_readers_and_no_others(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-1", requested)
    with running(database_url, postgres) as runners:
        assert wait(conn, 1, WELL_S)
        append(postgres, "order-2", but(placed, order_id="order-nobody-requested"))
        append(postgres, "account-acme", opened)
        assert eventually(lambda: sum(runner.halted is not None for runner in runners) == 2)
        halted = {runner.projection.name: runner.halted for runner in runners if runner.halted}
        assert halted == dict.fromkeys(("orders", "billing"), "AssertionError: an order starts with its request")
        others = [projection.name for projection in PROJECTIONS if projection.name not in halted]
        assert eventually(lambda: all(positions(conn)[name] == 3 for name in others))
        assert {positions(conn)[name] for name in halted} == {1}
        assert not wait(conn, 3, timeout_s=0)
    assert [(row.order_id, row.state) for row in stored(conn, OrderRow)] == [("order-1", "requested")]


def test_an_event_of_a_later_version_halts_its_possible_readers_and_is_never_passed(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-1", requested)
    row = postgres.encoded(Recorded("order-1", 2, placed, "acme", CAUSE, NOW))
    later = row._replace(topic="order.OrderPlaced.v9")
    of_the_librarys_tools = row._replace(originator_id="ticket-1", originator_version=1, topic="ticket.Found.v1")
    postgres._recorder.insert_events(as_notifications([of_the_librarys_tools]))
    assert bring_up_to_date(database_url, postgres, timeout_s=WELL_S)
    assert set(parked(conn)) == {"timeline"}, "which lists every event"
    postgres._recorder.insert_events(as_notifications([later]))
    bring_up_to_date(database_url, postgres, timeout_s=WELL_S)
    halted = parked(conn)
    assert set(halted) == {"timeline", "orders", "billing"}
    assert halted["orders"].position == 3
    assert "'order.OrderPlaced.v9' is unknown to this version of Trunkline" in halted["orders"].error
    with pytest.raises(CannotRebuild, match=r"orders cannot be replayed past position 3: .*OrderPlaced\.v9"):
        rebuild(database_url, postgres, [ORDERS])


def test_an_event_that_a_table_rejects_halts_its_projection_and_is_not_retried_for_ever(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-1", requested, placed, but(no_longer_fits, explanation="a\x00b"))
    with running(database_url, postgres) as runners:
        by_name = {runner.projection.name: runner for runner in runners}
        assert eventually(lambda: by_name["billing"].halted is not None)
        assert "UntranslatableCharacter" in str(by_name["billing"].halted)
        others = [name for name in by_name if name != "billing"]
        assert eventually(lambda: all(positions(conn)[name] == 3 for name in others))
        assert [by_name[name].halted for name in others] == [None] * 5
        assert position_of(conn, "billing") == 2


def test_a_halted_projection_continues_where_it_halted_once_it_can(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    """Here the missing event is the repair."""
    append(postgres, "order-1", requested)

    def stumble(*_: object) -> None:
        raise LookupError("not yet")

    broken = Projection(BILLING.name, BILLING.tables, BILLING.events, BILLING.partition, stumble)
    with one_runner(database_url, postgres, broken) as runner:
        assert eventually(lambda: runner.halted == "LookupError: not yet")
    assert position_of(conn, "billing") == 0
    with one_runner(database_url, postgres, BILLING):
        assert eventually(lambda: position_of(conn, "billing") == 1)


# --- wait, and by hand ---------------------------------------------------------------------------------------------


def test_waiting_ends_when_every_projection_has_caught_up_or_at_the_timeout(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    assert wait(conn, 0, timeout_s=0)
    position = append(postgres, "order-1", requested)
    assert not wait(conn, position, timeout_s=0)
    assert not wait(conn, position, timeout_s=0.05)
    with one_runner(database_url, postgres):
        assert eventually(lambda: positions(conn)["orders"] == position)
        assert not wait(conn, position, timeout_s=0)
    with running(database_url, postgres):
        assert wait(conn, position, timeout_s=WELL_S)
        assert wait(conn, position, timeout_s=0)
        assert not wait(conn, position + 1, timeout_s=0.05)


def test_a_writer_can_read_its_own_writes(postgres: Log, database_url: str, conn: Connection[Any]) -> None:
    with running(database_url, postgres):
        for n in range(1, 4):
            position = append(postgres, f"order-{n}", but(requested, order_id=f"order-{n}"))
            assert wait(conn, position, WELL_S)
            assert len(stored(conn, OrderRow)) == n


def test_without_a_runner_the_tables_are_updated_by_hand(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    tell(postgres, seed=3, steps=20)
    assert bring_up_to_date(database_url, postgres, timeout_s=0)
    assert_a_replay_shows_the_same(conn, postgres)
    assert set(positions(conn).values()) == {postgres.head()}


def test_an_event_with_a_retired_topic_is_projected_as_its_upcast(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "invoice_link-link-1", link_issued)
    row = postgres.encoded(Recorded("invoice_link-link-1", 2, revoked, "acme", CAUSE, NOW))
    golden = b'{"link_id":"link-1","revoked_at":"2026-10-20T10:00:00Z"}'
    retired = row._replace(topic="invoice_link.LinkRevoked.v1", state=golden)
    postgres._recorder.insert_events(as_notifications([retired]))
    assert bring_up_to_date(database_url, postgres, timeout_s=WELL_S)
    assert parked(conn) == {}
    assert_a_replay_shows_the_same(conn, postgres)
    assert [row.topic for row in stored(conn, TimelineRow)] == [LinkIssued.TOPIC, LinkRevoked.TOPIC]


def test_catching_up_waits_for_another_runner(postgres: Log, database_url: str, conn: Connection[Any]) -> None:
    append(postgres, "order-1", requested)
    assert only_one(conn, "projection orders")
    assert not bring_up_to_date(database_url, postgres, timeout_s=0.05)
    assert {name for name, position in positions(conn).items() if position == 0} == {"orders"}
