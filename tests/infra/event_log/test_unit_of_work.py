"""One commit over several aggregates, on the log in memory and on PostgreSQL."""

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


def told(log: Log) -> list[tuple[str, int, object]]:
    return [(fact.stream, fact.version, fact.event) for fact in log.history()]


class CountingRecorder(MemoryRecorder):
    """The log in memory, which counts how often each stream is loaded."""

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


def test_what_is_decided_shows_in_the_state_at_once_and_in_the_log_after_the_commit(memory: Log) -> None:
    work = UnitOfWork(memory)
    assert work.do(ORDER, "order-1", request) == [requested]
    assert work.state(ORDER, "order-1").requested == requested
    assert work.do(ORDER, "order-1", choose_contact) == [contact_chosen]
    assert work.do(ORDER, "order-1", place) == [placed]
    assert work.state(ORDER, "order-1").status is Status.PLACED
    assert memory.head() == 0
    commit(work)
    assert told(memory) == [
        ("order-order-1", 1, requested),
        ("order-order-1", 2, contact_chosen),
        ("order-order-1", 3, placed),
    ]


def test_several_streams_are_committed_at_once_with_the_document(log: Log) -> None:
    work = UnitOfWork(log)
    work.do(ACCOUNT, "acme", open_account)
    work.do(SUBSCRIPTION, "pkg-acme", activate)
    work.do(ALLOCATION, "pkg-acme", grant)
    work.keep(INVOICE)
    recorded = commit(work)
    assert recorded == list(log.history())
    assert {(fact.account_id, fact.cause, fact.recorded_at) for fact in recorded} == {("acme", DORA, NOW)}
    assert told(log) == [
        ("account-acme", 1, opened),
        ("account-acme", 2, wonka_added),
        ("account-acme", 3, wonka_default),
        ("subscription-pkg-acme", 1, activated),
        ("allocation-pkg-acme", 1, granted),
    ]
    assert log.document(INVOICE.sha256) == INVOICE


def test_a_later_unit_of_work_goes_on_where_the_first_one_ended(memory: Log) -> None:
    first = UnitOfWork(memory)
    first.do(ACCOUNT, "acme", open_account)
    commit(first)
    second = UnitOfWork(memory)
    assert second.state(ACCOUNT, "acme").receivers == {"wonka": wonka_added.contact}
    second.do(ACCOUNT, "acme", add_receiver)
    commit(second)
    assert told(memory)[-1] == ("account-acme", 4, bucket_added)


def test_the_account_of_an_aggregate_is_the_one_that_it_began_with(memory: Log) -> None:
    first = UnitOfWork(memory)
    first.do(ORDER, "order-1", request)
    commit(first, "acme")
    second = UnitOfWork(memory)
    second.do(ORDER, "order-1", choose_contact)
    commit(second, "slugworth")
    assert UnitOfWork(memory).account_of(ORDER, "order-1") == "acme"
    assert UnitOfWork(memory).account_of(ORDER, "order-2") is None


def test_where_nothing_is_decided_nothing_is_appended(log: Log) -> None:
    work = UnitOfWork(log)
    assert commit(work) == []
    work.do(ACCOUNT, "acme", open_account)
    commit(work)
    again = UnitOfWork(log)
    assert again.do(ACCOUNT, "acme", open_account) == []
    again.state(ORDER, "order-1")
    assert commit(again) == []
    assert log.head() == 3


def test_a_refusal_leaves_what_was_decided_before_it(memory: Log) -> None:
    work = UnitOfWork(memory)
    work.do(ORDER, "order-1", request)
    with pytest.raises(NoBillingContact):
        work.do(ORDER, "order-1", place)
    assert work.state(ORDER, "order-1").status is Status.REQUESTED
    commit(work)
    assert told(memory) == [("order-order-1", 1, requested)]


def test_who_was_too_slow_leaves_nothing_and_may_do_it_again(log: Log) -> None:
    given = UnitOfWork(log)
    given.do(ACCOUNT, "acme", open_account)
    given.do(ORDER, "order-1", request)
    commit(given)

    def wish(work: UnitOfWork) -> None:
        work.do(SUBSCRIPTION, "pkg-acme", activate)
        work.do(ORDER, "order-1", choose_contact)
        work.do(ACCOUNT, "acme", change_receiver)
        work.keep(INVOICE)

    slow, fast = UnitOfWork(log), UnitOfWork(log)
    wish(slow)
    fast.do(ORDER, "order-1", cancel)
    commit(fast)
    before = told(log)
    with pytest.raises(VersionConflict, match="order-order-1"):
        commit(slow)
    assert told(log) == before
    assert log.load("subscription-pkg-acme") == []
    assert log.document(INVOICE.sha256) is None

    again = UnitOfWork(log)
    with pytest.raises(Refusal, match="cancelled"):
        wish(again)


def test_a_conflict_on_one_aggregate_is_none_on_another(memory: Log) -> None:
    first, second = UnitOfWork(memory), UnitOfWork(memory)
    first.do(ACCOUNT, "acme", open_account)
    second.do(ORDER, "order-1", request)
    second.do(ORDER, "order-1", choose_contact)
    second.do(ORDER, "order-1", place)
    second.do(ORDER, "order-1", capture)
    commit(first)
    commit(second)
    assert [stream for stream, _, _ in told(memory)] == ["account-acme"] * 3 + ["order-order-1"] * 4


# --- what is remembered ---------------------------------------------------------------------------------------------


def pooled(log: Log, *, use_cache: bool = False) -> UnitOfWork:
    """A unit of work on a pool of 100 extensions, 20 of them Ultimate."""
    work = UnitOfWork(log, use_cache=use_cache)
    work.do(ALLOCATION, "pkg-acme", grant)
    commit(work)
    return UnitOfWork(log, use_cache=use_cache)


def test_who_trusts_what_is_remembered_does_not_ask_the_log() -> None:
    recorder = CountingRecorder()
    work = pooled(Log(recorder), use_cache=True)
    recorder.loaded.clear()
    work.do(ALLOCATION, "pkg-acme", create_factory)
    commit(work)
    assert recorder.loaded == []


def test_who_does_not_trust_asks_only_for_what_is_new() -> None:
    recorder = CountingRecorder()
    work = pooled(Log(recorder))
    recorder.loaded.clear()
    assert work.state(ALLOCATION, "pkg-acme").totals == granted.quantities
    assert recorder.loaded == ["allocation-pkg-acme"]


def test_what_is_known_not_to_be_there_is_begun_without_asking_and_a_conflict_where_it_is() -> None:
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
    assert told(log) == [("order-order-1", 1, requested)]


def test_what_another_process_appended_meanwhile_is_a_conflict_and_then_known() -> None:
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
def test_what_leads_to_no_append_is_decided_on_what_the_log_says(command: AllocationCommand) -> None:
    """A pool that is remembered without its PBX would refuse; what another process did meanwhile counts."""
    recorder = CountingRecorder()
    here, elsewhere = Log(recorder), Log(recorder)
    use_cache = pooled(here, use_cache=True)
    fast = UnitOfWork(elsewhere)
    fast.do(ALLOCATION, "pkg-acme", create_factory)
    commit(fast)

    with pytest.raises(VersionConflict):
        use_cache.do(ALLOCATION, "pkg-acme", command)
    again = UnitOfWork(here, use_cache=True)
    assert again.do(ALLOCATION, "pkg-acme", command) == ([] if command is grant else [allocated])


def test_what_holds_personal_data_is_not_remembered(memory: Log) -> None:
    lives: list[tuple[Decider[Any, Any, Any], str, Command]] = [
        (ACCOUNT, "acme", open_account),
        (ORDER, "order-1", request),
    ]
    for decider, aggregate_id, command in lives:
        work = UnitOfWork(memory)
        work.do(decider, aggregate_id, command)
        commit(work)
        UnitOfWork(memory).state(decider, aggregate_id)
        assert memory.recent.get(decider.stream(aggregate_id)) is None


def test_of_the_states_that_are_remembered_the_least_used_go_first() -> None:
    recent = StateCache(states_max=2)
    recent.keep("pool-1", CachedState(1, "old", None))
    recent.keep("pool-2", CachedState(1, "two", None))
    recent.keep("pool-1", CachedState(3, "new", None))
    recent.keep("pool-1", CachedState(2, "late", None))
    recent.keep("pool-3", CachedState(1, "three", None))
    assert recent.get("pool-2") is None
    assert recent.get("pool-1") == CachedState(3, "new", None)
