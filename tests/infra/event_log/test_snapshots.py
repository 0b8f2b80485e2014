"""Snapshots: when loading starts from one, and when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import hypothesis
import pytest
from eventsourcing.persistence import StoredEvent
from hypothesis import strategies as st

import infra.event_log.snapshots
from domain.allocation import ALLOCATION, AllocateCapacity, AllocationCommand
from domain.personal import personal_fields
from infra.event_log.log import Log
from infra.event_log.memory_recorder import MemoryRecorder
from infra.event_log.snapshots import IMPERSONAL, from_snapshot, load_aggregate, snapshot_of, take_snapshots
from infra.event_log.state_cache import CachedState
from infra.event_log.topics import AGGREGATES
from infra.event_log.unit_of_work import UnitOfWork
from infra.postgres.connections import connect
from infra.recorded import Recorded
from tests.support.examples import NOW, create_factory, grant, granted
from tests.support.given_domain import given
from tests.support.given_projection import CAUSE
from tests.support.strategies import AGGREGATES as STRATEGIES
from tests.support.strategies import Aggregate

POOL = "allocation-pkg-acme"


def minutes(count: int) -> Sequence[AllocateCapacity]:
    """Return commands that each allocate one recording minute to the factory."""
    return [
        AllocateCapacity(
            at=NOW,
            account_id="acme",
            package_id="pkg-acme",
            pbx_id="pbx-factory",
            allocation_id=f"minutes-{number}",
            service="recording_minutes",
            quantity=1,
        )
        for number in range(count)
    ]


def append_pool(log: Log, events: int) -> None:
    work = UnitOfWork(log)
    commands: list[AllocationCommand] = [grant, create_factory, *minutes(events - 2)]
    for command in commands:
        work.do(ALLOCATION, "pkg-acme", command)
    work.commit(account_id="acme", cause=CAUSE, at=NOW)


def uncached(log: Log) -> Log:
    """Return the same log with an empty cache, as in a new process."""
    return Log(log._recorder)


@pytest.fixture(autouse=True)
def _snapshots_every_10_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.event_log.snapshots, "EVERY", 10)


def test_a_long_stream_gets_a_snapshot_from_which_it_is_loaded(
    postgres: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_pool(postgres, 25)
    expected = load_aggregate(ALLOCATION, POOL, uncached(postgres))
    with connect(database_url) as conn:
        assert take_snapshots(conn, postgres) == 1
        assert take_snapshots(conn, postgres) == 0  # there are no new events

    fresh = uncached(postgres)
    offsets: list[int] = []

    def counted(stream: str, after: int) -> list[Recorded]:
        offsets.append(after)
        return postgres.load(stream, after)

    monkeypatch.setattr(fresh, "load", counted)
    assert load_aggregate(ALLOCATION, POOL, fresh) == expected
    assert offsets == [25]


def test_a_short_stream_gets_no_snapshot(postgres: Log, database_url: str) -> None:
    append_pool(postgres, 9)
    with connect(database_url) as conn:
        assert take_snapshots(conn, postgres) == 0


def test_a_stream_that_grew_gets_a_later_snapshot(postgres: Log, database_url: str) -> None:
    append_pool(postgres, 12)
    with connect(database_url) as conn:
        take_snapshots(conn, postgres)
        work = UnitOfWork(postgres)
        for command in minutes(40)[10:]:
            work.do(ALLOCATION, "pkg-acme", command)
        work.commit(account_id="acme", cause=CAUSE, at=NOW)
        assert take_snapshots(conn, postgres) == 1
    snapshot = from_snapshot(ALLOCATION, POOL, postgres)
    assert snapshot is not None
    assert snapshot.version == 42


@pytest.mark.parametrize("log", ["memory", "postgres"], indirect=True)
def test_a_snapshot_of_an_old_shape_is_ignored(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append_pool(log, 12)
    wrong = CachedState(12, given(ALLOCATION).state, "slugworth")
    log.keep_snapshot(snapshot_of(ALLOCATION, POOL, wrong))
    assert from_snapshot(ALLOCATION, POOL, log) == wrong
    monkeypatch.setattr(infra.event_log.snapshots, "_shape", lambda _: "another")
    fresh = load_aggregate(ALLOCATION, POOL, uncached(log))
    assert (fresh.version, fresh.account_id) == (12, "acme")
    assert fresh.state.totals == granted.quantities


def test_the_shape_changes_with_the_fold_and_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = infra.event_log.snapshots._shape.__wrapped__
    before = shape("allocation")
    monkeypatch.setattr("inspect.getsource", lambda _: "def evolve(): ...")
    assert shape("allocation") != before


def test_states_with_personal_data_get_no_snapshots() -> None:
    categories = {decider.category for decider in IMPERSONAL}
    assert not any(decider.personal for decider in IMPERSONAL)
    events = [event for union in AGGREGATES for event in get_args(union) or (union,)]
    personal = {event.TOPIC.split(".")[0] for event in events if personal_fields(event)}
    assert personal == {"account", "order", "invoice"}
    assert {event.TOPIC.split(".")[0] for event in events} == categories | personal


IMPERSONAL_STRATEGIES = {name: aggregate for name, aggregate in STRATEGIES.items() if not aggregate.decider.personal}


@pytest.mark.parametrize("aggregate", IMPERSONAL_STRATEGIES.values(), ids=IMPERSONAL_STRATEGIES)
@hypothesis.settings(deadline=None, max_examples=15, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=st.data())
def test_every_state_is_restored_from_its_snapshot(aggregate: Aggregate, data: st.DataObject) -> None:
    outcome: Any = given(aggregate.decider)
    for command in data.draw(aggregate.sequences(8)):
        outcome = outcome.when(command).after
    log = Log(MemoryRecorder())
    cached = CachedState(8, outcome.state, "acme")
    log.keep_snapshot(snapshot_of(aggregate.decider, "it-1", cached))
    assert from_snapshot(aggregate.decider, "it-1", log) == cached


def test_an_unreadable_stream_does_not_prevent_snapshots_of_others(
    postgres: Log, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """During an update, a later version may have written it. The worker continues."""
    append_pool(postgres, 10)
    every = infra.event_log.snapshots.EVERY
    later = [StoredEvent("allocation-later", n, "allocation.Later.v9", b"{}") for n in range(1, every + 1)]
    postgres._recorder.insert_events(later)
    with connect(database_url) as conn:
        assert take_snapshots(conn, postgres) == 1
    assert "no snapshot of allocation-later" in caplog.text
