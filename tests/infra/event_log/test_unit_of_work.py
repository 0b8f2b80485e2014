"""The unit of work: one commit of several aggregates, in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from domain.account import ACCOUNT
from domain.allocation import ALLOCATION, AllocationCommand
from domain.messages import Command, Decider, Refusal
from domain.order import ORDER, NoBillingContact, Status
from domain.subscription import SUBSCRIPTION
from infra.event_log.log import Log, VersionConflict
from infra.event_log.memory_recorder import MemoryRecorder
from infra.event_log.recorder import StoredDocument
from infra.event_log.state_cache import CachedState, StateCache
from infra.event_log.unit_of_work import UnitOfWork
from infra.recorded import Cause, Recorded
from tests.support.examples import (
    NOW,
    activate,
    activated,
    add_receiver,
    allocate,
    allocated,
    bucket_added,
    cancel,
    capture,
    change_receiver,
    choose_contact,
    contact_chosen,
    create_factory,
    create_shop,
    grant,
    granted,
    open_account,
    opened,
    place,
    placed,
    request,
    requested,
    wonka_added,
    wonka_default,
)

DORA = Cause("distributor:dora", "wish-1")
INVOICE = StoredDocument("d0c", "application/pdf", b"%PDF-1.7 ACME")


def commit(work: UnitOfWork, account_id: str | None = "acme") -> list[Recorded]:
    return work.commit(account_id=account_id, cause=DORA, at=NOW)


def history(log: Log) -> list[tuple[str, int, object]]:
    return [(fact.stream, fact.version, fact.event) for fact in log.history()]


class CountingRecorder(MemoryRecorder):
    """A recorder in memory that records which streams are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def select_events(self, originator_id: UUID | str, **rest: Any) -> Sequence[StoredEvent]:  # noqa: ANN401 - passed on
        self.loaded.append(str(originator_id))
        return super().select_events(originator_id, **rest)


def test_each_aggregate_is_loaded_once() -> None:
    recorder = CountingRecorder()
    work = UnitOfWork(Log(recorder))
    assert work.account_of(ACCOUNT, "acme") is None
    assert work.state(ACCOUNT, "acme").opened is None
    work.do(ACCOUNT, "acme", open_account)
    work.do(ACCOUNT, "acme", add_receiver)
    work.do(ORDER, "order-1", request)
    assert work.state(ACCOUNT, "acme").opened == opened
    assert work.account_of(ORDER, "order-1") is None
    commit(work)
    assert recorder.loaded == ["account-acme", "order-order-1"]


def test_decisions_show_in_the_state_at_once_and_in_the_log_after_the_commit(memory: Log) -> None:
    work = UnitOfWork(memory)
    assert work.do(ORDER, "order-1", request) == [requested]
    assert work.state(ORDER, "order-1").requested == requested
    assert work.do(ORDER, "order-1", choose_contact) == [contact_chosen]
    assert work.do(ORDER, "order-1", place) == [placed]
    assert work.state(ORDER, "order-1").status is Status.PLACED
    assert memory.head() == 0
    commit(work)
    assert history(memory) == [
        ("order-order-1", 1, requested),
        ("order-order-1", 2, contact_chosen),
        ("order-order-1", 3, placed),
    ]


def test_several_streams_and_a_document_are_committed_together(log: Log) -> None:
    work = UnitOfWork(log)
    work.do(ACCOUNT, "acme", open_account)
    work.do(SUBSCRIPTION, "pkg-acme", activate)
    work.do(ALLOCATION, "pkg-acme", grant)
    work.keep(INVOICE)
    recorded = commit(work)
    assert recorded == list(log.history())
    assert {(fact.account_id, fact.cause, fact.recorded_at) for fact in recorded} == {("acme", DORA, NOW)}
    assert history(log) == [
        ("account-acme", 1, opened),
        ("account-acme", 2, wonka_added),
        ("account-acme", 3, wonka_default),
        ("subscription-pkg-acme", 1, activated),
        ("allocation-pkg-acme", 1, granted),
    ]
    assert log.document(INVOICE.sha256) == INVOICE


def test_a_later_unit_of_work_continues_from_the_first_one(memory: Log) -> None:
    first = UnitOfWork(memory)
    first.do(ACCOUNT, "acme", open_account)
    commit(first)
    second = UnitOfWork(memory)
    assert second.state(ACCOUNT, "acme").receivers == {"wonka": wonka_added.contact}
    second.do(ACCOUNT, "acme", add_receiver)
    commit(second)
    assert history(memory)[-1] == ("account-acme", 4, bucket_added)


def test_the_account_of_an_aggregate_is_that_of_its_first_event(memory: Log) -> None:
    first = UnitOfWork(memory)
    first.do(ORDER, "order-1", request)
    commit(first, "acme")
    second = UnitOfWork(memory)
    second.do(ORDER, "order-1", choose_contact)
    commit(second, "slugworth")
    assert UnitOfWork(memory).account_of(ORDER, "order-1") == "acme"
    assert UnitOfWork(memory).account_of(ORDER, "order-2") is None


def test_without_decisions_nothing_is_appended(log: Log) -> None:
    work = UnitOfWork(log)
    assert commit(work) == []
    work.do(ACCOUNT, "acme", open_account)
    commit(work)
    again = UnitOfWork(log)
    assert again.do(ACCOUNT, "acme", open_account) == []
    again.state(ORDER, "order-1")
    assert commit(again) == []
    assert log.head() == 3


def test_a_refusal_keeps_the_decisions_before_it(memory: Log) -> None:
    work = UnitOfWork(memory)
    work.do(ORDER, "order-1", request)
    with pytest.raises(NoBillingContact):
        work.do(ORDER, "order-1", place)
    assert work.state(ORDER, "order-1").status is Status.REQUESTED
    commit(work)
    assert history(memory) == [("order-order-1", 1, requested)]


def test_a_version_conflict_stores_nothing_and_the_work_can_be_repeated(log: Log) -> None:
    given = UnitOfWork(log)
    given.do(ACCOUNT, "acme", open_account)
    given.do(ORDER, "order-1", request)
    commit(given)

    def purchase(work: UnitOfWork) -> None:
        work.do(SUBSCRIPTION, "pkg-acme", activate)
        work.do(ORDER, "order-1", choose_contact)
        work.do(ACCOUNT, "acme", change_receiver)
        work.keep(INVOICE)

    slow, fast = UnitOfWork(log), UnitOfWork(log)
    purchase(slow)
    fast.do(ORDER, "order-1", cancel)
    commit(fast)
    before = history(log)
    with pytest.raises(VersionConflict, match="order-order-1"):
        commit(slow)
    assert history(log) == before
    assert log.load("subscription-pkg-acme") == []
    assert log.document(INVOICE.sha256) is None

    again = UnitOfWork(log)
    with pytest.raises(Refusal, match="cancelled"):
        purchase(again)


def test_units_of_work_on_different_aggregates_do_not_conflict(memory: Log) -> None:
    first, second = UnitOfWork(memory), UnitOfWork(memory)
    first.do(ACCOUNT, "acme", open_account)
    second.do(ORDER, "order-1", request)
    second.do(ORDER, "order-1", choose_contact)
    second.do(ORDER, "order-1", place)
    second.do(ORDER, "order-1", capture)
    commit(first)
    commit(second)
    assert [stream for stream, _, _ in history(memory)] == ["account-acme"] * 3 + ["order-order-1"] * 4


# --- cached states -------------------------------------------------------------------------------------------------


def pooled(log: Log, *, use_cache: bool = False) -> UnitOfWork:
    """Return a unit of work on a pool of 100 extensions, 20 of them Ultimate."""
    work = UnitOfWork(log, use_cache=use_cache)
    work.do(ALLOCATION, "pkg-acme", grant)
    commit(work)
    return UnitOfWork(log, use_cache=use_cache)


def test_a_unit_of_work_that_uses_the_cache_does_not_read_the_log() -> None:
    recorder = CountingRecorder()
    work = pooled(Log(recorder), use_cache=True)
    recorder.loaded.clear()
    work.do(ALLOCATION, "pkg-acme", create_factory)
    commit(work)
    assert recorder.loaded == []


def test_a_unit_of_work_that_does_not_use_the_cache_reads_only_new_events() -> None:
    recorder = CountingRecorder()
    work = pooled(Log(recorder))
    recorder.loaded.clear()
    assert work.state(ALLOCATION, "pkg-acme").totals == granted.quantities
    assert recorder.loaded == ["allocation-pkg-acme"]


def test_a_new_aggregate_is_begun_without_loading_and_conflicts_if_it_exists() -> None:
    recorder = CountingRecorder()
    log = Log(recorder)
    first, second = UnitOfWork(log), UnitOfWork(log)
    for work in (first, second):
        work.begin(ORDER, "order-1")
        assert work.do(ORDER, "order-1", request) == [requested]
    commit(first)
    with pytest.raises(VersionConflict):
        commit(second)
    assert recorder.loaded == []
    assert history(log) == [("order-order-1", 1, requested)]


def test_an_append_of_another_process_is_a_conflict_once_and_then_known() -> None:
    recorder = CountingRecorder()
    here, elsewhere = Log(recorder), Log(recorder)
    slow = pooled(here, use_cache=True)
    fast = UnitOfWork(elsewhere)
    fast.do(ALLOCATION, "pkg-acme", create_factory)
    commit(fast)

    slow.do(ALLOCATION, "pkg-acme", create_shop)
    with pytest.raises(VersionConflict):
        commit(slow)
    again = UnitOfWork(here, use_cache=True)
    assert set(again.state(ALLOCATION, "pkg-acme").pbxs) == {"pbx-factory"}


@pytest.mark.parametrize("command", [grant, allocate], ids=["done already", "refused"])
def test_a_command_without_events_is_checked_against_the_log(command: AllocationCommand) -> None:
    """The cached pool lacks the PBX that another process created meanwhile, and would refuse."""
    recorder = CountingRecorder()
    here, elsewhere = Log(recorder), Log(recorder)
    cached = pooled(here, use_cache=True)
    fast = UnitOfWork(elsewhere)
    fast.do(ALLOCATION, "pkg-acme", create_factory)
    commit(fast)

    with pytest.raises(VersionConflict):
        cached.do(ALLOCATION, "pkg-acme", command)
    again = UnitOfWork(here, use_cache=True)
    assert again.do(ALLOCATION, "pkg-acme", command) == ([] if command is grant else [allocated])


def test_states_with_personal_data_are_not_cached(memory: Log) -> None:
    cases: list[tuple[Decider[Any, Any, Any], str, Command]] = [
        (ACCOUNT, "acme", open_account),
        (ORDER, "order-1", request),
    ]
    for decider, aggregate_id, command in cases:
        work = UnitOfWork(memory)
        work.do(decider, aggregate_id, command)
        commit(work)
        UnitOfWork(memory).state(decider, aggregate_id)
        assert memory.recent.get(decider.stream(aggregate_id)) is None


def test_the_cache_evicts_the_least_recently_used_state_first() -> None:
    cache = StateCache(states_max=2)
    cache.keep("pool-1", CachedState(1, "old", None))
    cache.keep("pool-2", CachedState(1, "two", None))
    cache.keep("pool-1", CachedState(3, "new", None))
    cache.keep("pool-1", CachedState(2, "late", None))
    cache.keep("pool-3", CachedState(1, "three", None))
    assert cache.get("pool-2") is None
    assert cache.get("pool-1") == CachedState(3, "new", None)
