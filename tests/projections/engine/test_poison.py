"""An event that a projection cannot process: found, parked, reported, retried or skipped; the others continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from domain.messages import Event
from infra.event_log.log import Change, Log
from infra.postgres.connections import connect
from infra.postgres.positions import position_of
from infra.recorded import Recorded
from projections.billing import BILLING
from projections.engine.poison import NoReason, NothingParked, parked, retry, said, skip, skipped, skipped_positions
from projections.engine.projection import Projection
from projections.engine.rows import Rows, stored
from projections.maintenance import runner as running_module
from projections.maintenance.rebuild import rebuild
from projections.maintenance.replay import CannotRebuild
from projections.maintenance.runner import PROJECTIONS, Runner, bring_up_to_date, running, statuses, wait
from projections.maintenance.verify import verify
from projections.orders import ORDERS, OrderRow
from tests.projections.maintenance.test_runner import WELL_S, eventually, one_runner
from tests.support.examples import NOW, no_longer_fits, placed, requested
from tests.support.given_domain import but
from tests.support.given_projection import CAUSE

POISON = but(placed, order_id="order-nobody-requested")


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "RETRY_S", 0.02)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    with connect(database_url) as conn:
        yield conn


def append(log: Log, stream: str, *events: Event) -> int:
    change = Change(stream, len(log.load(stream)), events)
    return log.append([change], account_id="acme", cause=CAUSE, at=NOW)[-1].position


def ordered(log: Log, *numbers: int) -> int:
    return [append(log, f"order-{n}", but(requested, order_id=f"order-{n}")) for n in numbers][-1]


def halted(conn: Connection[Any]) -> dict[str, int]:
    return {name: event.position for name, event in parked(conn).items()}


def ids(conn: Connection[Any]) -> list[str]:
    return [row.order_id for row in stored(conn, OrderRow)]


@pytest.mark.parametrize("poisoned", [1, 2, 30, 59, 60])
def test_a_poison_event_is_found_anywhere_in_a_batch_and_all_before_it_is_projected(
    postgres: Log, database_url: str, conn: Connection[Any], poisoned: int
) -> None:
    for n in range(1, 61):
        if n == poisoned:
            append(postgres, "order-poison", POISON)
        else:
            ordered(postgres, n)
    with one_runner(database_url, postgres) as runner:
        assert eventually(lambda: runner.halted is not None)
    assert halted(conn) == {"orders": poisoned}
    assert position_of(conn, "orders") == poisoned - 1
    assert len(ids(conn)) == poisoned - 1


def test_a_parked_event_has_its_position_error_and_traceback_and_health_reports_it(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    ordered(postgres, 1)
    append(postgres, "order-poison", POISON)
    with running(database_url, postgres):
        assert eventually(lambda: set(halted(conn)) == {"orders", "billing"})
        others = [p for p in PROJECTIONS if p.name not in halted(conn)]
        assert wait(conn, 2, WELL_S, others)
        by_name = {status.name: status for status in statuses(conn)}
    event = by_name["orders"].parked
    assert event is not None
    assert (event.position, event.stream, event.version, event.topic) == (2, "order-poison", 1, "order.OrderPlaced.v1")
    assert event.error == "AssertionError: an order starts with its request"
    assert "in fold" in event.traceback
    assert [name for name, status in by_name.items() if not status.ok] == ["orders", "billing"]
    assert (by_name["orders"].lag, by_name["timeline"].lag) == (1, 0)
    assert all(status.running for status in by_name.values())


def test_a_retry_is_one_attempt_and_a_second_failure_is_counted(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-poison", POISON)
    with one_runner(database_url, postgres) as runner:
        assert eventually(lambda: runner.halted is not None)
        assert retry(conn, "orders") == 1
        assert eventually(lambda: parked(conn)["orders"].attempts == 2)
        assert not parked(conn)["orders"].retry


def test_after_a_fix_a_retry_continues_where_it_halted(postgres: Log, database_url: str, conn: Connection[Any]) -> None:
    ordered(postgres, 1, 2)
    is_fixed: list[bool] = []

    def stumble(rows: Rows, recorded: Recorded[Any]) -> None:
        if recorded.position == 2 and not is_fixed:
            raise LookupError("not yet")
        ORDERS.fold(rows, recorded)

    broken = Projection(ORDERS.name, ORDERS.tables, ORDERS.events, ORDERS.partition, stumble)
    with one_runner(database_url, postgres, broken) as runner:
        assert eventually(lambda: runner.halted == "LookupError: not yet")
        ordered(postgres, 3)
        is_fixed.append(True)
        assert position_of(conn, "orders") == 1
        retry(conn, "orders")
        assert eventually(lambda: position_of(conn, "orders") == 3)
        assert eventually(lambda: runner.halted is None and not parked(conn))
    assert ids(conn) == ["order-1", "order-2", "order-3"]


def test_a_skip_leaves_the_event_out_everywhere_and_every_report_names_its_actor(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    ordered(postgres, 1)
    append(postgres, "order-poison", POISON)
    ordered(postgres, 3)
    with one_runner(database_url, postgres) as runner:
        assert eventually(lambda: runner.halted is not None)
        assert skip(conn, "orders", "admin:ada", " It was a test. ") == 2
        assert eventually(lambda: position_of(conn, "orders") == 3)
        assert eventually(lambda: runner.halted is None)
    assert ids(conn) == ["order-1", "order-3"]
    (left_out,) = skipped(conn, "orders")
    assert (left_out.position, left_out.actor, left_out.reason) == (2, "admin:ada", "It was a test.")
    assert left_out.error == "AssertionError: an order starts with its request"
    (status,) = (status for status in statuses(conn) if status.name == "orders")
    assert (status.ok, [s.reason for s in status.skipped]) == (True, ["It was a test."])

    assert rebuild(database_url, postgres, [ORDERS], processes=1).skipped == [left_out]
    assert verify(database_url, postgres, ORDERS, processes=1).ok
    assert ids(conn) == ["order-1", "order-3"]
    with pytest.raises(AssertionError):
        ORDERS.as_of(postgres, "acme", 3)
    assert len(ORDERS.as_of(postgres, "acme", 3, skipped_positions(conn, "orders")).of(OrderRow)) == 2


def test_the_application_can_neither_change_nor_revoke_a_skip(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-poison", POISON)
    with one_runner(database_url, postgres) as runner:
        assert eventually(lambda: runner.halted is not None)
        skip(conn, "orders", "admin:ada", "It was a test.")
    for statement in ("UPDATE projection.skipped SET actor = 'nobody'", "DELETE FROM projection.skipped"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(statement.encode())


@pytest.mark.parametrize("decide", [retry, lambda conn, name: skip(conn, name, "admin:ada", "Why not.")])
def test_without_a_parked_event_there_is_nothing_to_retry_or_skip(
    conn: Connection[Any], decide: Callable[[Connection[Any], str], int]
) -> None:
    with pytest.raises(NothingParked, match="The projection orders is not halted"):
        decide(conn, "orders")


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_nothing_is_skipped_without_a_reason(conn: Connection[Any], reason: str) -> None:
    with pytest.raises(NoReason):
        skip(conn, "orders", "admin:ada", reason)


def test_a_runner_that_takes_over_tries_once_and_then_halts_too(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    append(postgres, "order-poison", POISON)
    for attempts in (1, 2):
        with one_runner(database_url, postgres) as runner:
            assert eventually(lambda: runner.halted is not None)
        assert parked(conn)["orders"].attempts == attempts


def test_an_unreadable_event_halts_the_projections_that_read_its_body(
    postgres: Log, database_url: str, owner_url: str, conn: Connection[Any]
) -> None:
    ordered(postgres, 1)
    with psycopg.connect(owner_url) as owner:
        owner.execute("ALTER TABLE log.events DISABLE TRIGGER only_added_to")
        owner.execute("""UPDATE log.events SET state = '{"order_id": 7}'""")
    with running(database_url, postgres):
        assert eventually(lambda: set(halted(conn)) == {"orders", "billing"})
        assert eventually(lambda: position_of(conn, "timeline") == 1)
    assert parked(conn)["orders"].error.startswith("UnreadableEvent: Event order-1 version 1, at position 1, cannot")
    with pytest.raises(CannotRebuild, match="cannot be replayed past position 1: UnreadableEvent"):
        rebuild(database_url, postgres, [ORDERS], processes=1)


def test_row_details_of_database_errors_are_kept_out_of_reports(
    postgres: Log, database_url: str, conn: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    poison = but(no_longer_fits, explanation="a secret\x00")
    append(postgres, "order-1", requested, placed, poison)
    with one_runner(database_url, postgres, BILLING) as runner:
        assert eventually(lambda: runner.halted is not None)
    event = parked(conn)["billing"]
    assert event.position == 3
    assert "secret" not in event.error + event.traceback + caplog.text
    assert said(ValueError("one\ntwo\x00")) == "ValueError: one"


def test_catching_up_by_hand_parks_a_poison_event_and_updates_the_others(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    ordered(postgres, 1)
    append(postgres, "order-poison", POISON)
    assert bring_up_to_date(database_url, postgres, WELL_S)
    assert halted(conn) == {"orders": 2, "billing": 2}
    assert bring_up_to_date(database_url, postgres, WELL_S)
    assert parked(conn)["orders"].attempts == 1
    retry(conn, "orders")
    assert bring_up_to_date(database_url, postgres, WELL_S)
    assert parked(conn)["orders"].attempts == 2


def test_a_rebuild_with_a_fixed_fold_ends_the_halt(postgres: Log, database_url: str, conn: Connection[Any]) -> None:
    ordered(postgres, 1)

    def stumble(*_: object) -> None:
        raise LookupError("not yet")

    broken = Projection(ORDERS.name, ORDERS.tables, ORDERS.events, ORDERS.partition, stumble)
    runner = Runner(database_url, postgres, broken)
    while runner.step(conn):
        continue
    assert halted(conn) == {"orders": 1}
    rebuild(database_url, postgres, [ORDERS], processes=1)
    assert halted(conn) == {}
    assert ids(conn) == ["order-1"]
