"""Fair wake-up: the earliest goes on first, few at a time; nobody is forgotten, whoever gives up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

import infra.event_log.fair_wakeup
from infra.event_log.fair_wakeup import PERMITS, FairWakeup, Waiter


@pytest.fixture(autouse=True)
def _nobody_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.event_log.fair_wakeup, "LATE_S", 3600.0)


class Interrupted:
    """Stands for a waiter's lock, where an interrupt comes before it is called."""

    def acquire(self) -> None:
        raise KeyboardInterrupt

    def release(self) -> None:
        """As a lock."""


def called(waiters: Sequence[Waiter]) -> list[int]:
    return [number for number, waiter in enumerate(waiters) if not waiter.called.locked()]


def test_a_few_are_called_and_each_calls_the_next_as_it_goes_on() -> None:
    turns, waiters = FairWakeup(), [Waiter() for _ in range(6)]
    turns.call(waiters[:4])
    turns.call(waiters[4:])
    assert called(waiters) == list(range(PERMITS))
    for gone in range(3):
        turns.wait(waiters[gone])
        assert called(waiters) == list(range(gone + 1, gone + 1 + PERMITS))  # a lock is taken by who waited for it


def test_a_turn_that_nobody_waited_for_is_kept_for_who_comes() -> None:
    turns, waiters = FairWakeup(), [Waiter() for _ in range(PERMITS)]
    turns.call(waiters)
    for waiter in waiters:
        turns.wait(waiter)
    later = [Waiter() for _ in range(PERMITS + 1)]
    turns.call(later)
    assert called(later) == list(range(PERMITS))


def test_who_is_late_waits_for_no_turn() -> None:
    """Another thread may keep the interpreter's lock for as long as this; each of them would wait for that anew."""
    turns, waiters = FairWakeup(), [Waiter() for _ in range(8)]
    turns.call(waiters)
    for waiter in waiters:
        waiter.since -= 2 * infra.event_log.fair_wakeup.LATE_S
    turns.wait(waiters[0])
    assert called(waiters) == list(range(1, 8))
    for waiter in waiters[1:]:
        turns.wait(waiter)
    later = [Waiter() for _ in range(PERMITS + 1)]
    turns.call(later)
    assert called(later) == list(range(PERMITS)), "who was late had no turn to give back"


def test_who_is_waited_for_with_others_keeps_no_turn() -> None:
    turns, waiters = FairWakeup(), [Waiter() for _ in range(6)]
    for waiter in waiters[:4]:
        waiter.unattended = True
    turns.call(waiters)
    assert called(waiters) == list(range(6))


@pytest.mark.parametrize("before_its_turn", [True, False])
def test_who_may_be_interrupted_has_no_turn_to_lose(before_its_turn: bool) -> None:
    turns, waiters = FairWakeup(), [Waiter() for _ in range(PERMITS)]
    given_up: list[Any] = [Waiter() for _ in range(PERMITS)]
    for waiter in given_up:
        waiter.unattended = True

    def give_up() -> None:
        for waiter in given_up:
            waiter.called = Interrupted()
            with pytest.raises(KeyboardInterrupt):
                turns.wait(waiter)

    if before_its_turn:
        give_up()
        turns.call([*given_up, *waiters])
    else:
        turns.call([*given_up, *waiters])
        give_up()
    assert called(waiters) == list(range(PERMITS))


def test_who_may_be_interrupted_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, waiter = FairWakeup(), Waiter()
    waiter.unattended = True
    turns.call([waiter])
    monkeypatch.setattr(turns, "_wake_next", Interrupted().acquire)
    turns.wait(waiter)


def test_nobody_is_forgotten_however_they_race() -> None:
    turns, asked = FairWakeup(), SimpleQueue[Waiter | None]()

    def come_and_go() -> None:
        for _ in range(500):
            waiter = Waiter()
            asked.put(waiter)
            turns.wait(waiter)

    def call_groups() -> None:
        while (waiter := asked.get()) is not None:
            group = [waiter]
            while not asked.empty() and (another := asked.get()) is not None:
                group.append(another)
            turns.call(group)

    caller = threading.Thread(target=call_groups)
    caller.start()
    with ThreadPoolExecutor(16) as pool:
        for gone in [pool.submit(come_and_go) for _ in range(16)]:
            gone.result(timeout=60)
    asked.put(None)
    caller.join(timeout=60)
    assert len(turns._free) == PERMITS
