"""Fair wake-up: oldest first, a few at a time, and no waiter is left asleep, whichever others are interrupted."""

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
def _no_waiter_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.event_log.fair_wakeup, "LATE_S", 3600.0)


class Interrupted:
    """Replaces a waiter's lock: an interrupt arrives while the thread waits for it."""

    def acquire(self) -> None:
        raise KeyboardInterrupt

    def release(self) -> None:
        """Do nothing; a lock has this method."""


def woken(waiters: Sequence[Waiter]) -> list[int]:
    return [number for number, waiter in enumerate(waiters) if not waiter.called.locked()]


def test_a_few_waiters_are_woken_and_each_wakes_the_next() -> None:
    wakeup, waiters = FairWakeup(), [Waiter() for _ in range(6)]
    wakeup.call(waiters[:4])
    wakeup.call(waiters[4:])
    assert woken(waiters) == list(range(PERMITS))
    for number in range(3):
        wakeup.wait(waiters[number])
        # A waiter that has returned holds its lock again.
        assert woken(waiters) == list(range(number + 1, number + 1 + PERMITS))


def test_returned_permits_are_kept_for_later_waiters() -> None:
    wakeup, waiters = FairWakeup(), [Waiter() for _ in range(PERMITS)]
    wakeup.call(waiters)
    for waiter in waiters:
        wakeup.wait(waiter)
    later = [Waiter() for _ in range(PERMITS + 1)]
    wakeup.call(later)
    assert woken(later) == list(range(PERMITS))


def test_late_waiters_are_woken_without_permits() -> None:
    """Another thread may hold the GIL that long; otherwise each waiter would wait for it again."""
    wakeup, waiters = FairWakeup(), [Waiter() for _ in range(8)]
    wakeup.call(waiters)
    for waiter in waiters:
        waiter.since -= 2 * infra.event_log.fair_wakeup.LATE_S
    wakeup.wait(waiters[0])
    assert woken(waiters) == list(range(1, 8))
    for waiter in waiters[1:]:
        wakeup.wait(waiter)
    later = [Waiter() for _ in range(PERMITS + 1)]
    wakeup.call(later)
    assert woken(later) == list(range(PERMITS)), "a late waiter had no permit to return"


def test_unattended_waiters_take_no_permit() -> None:
    wakeup, waiters = FairWakeup(), [Waiter() for _ in range(6)]
    for waiter in waiters[:4]:
        waiter.unattended = True
    wakeup.call(waiters)
    assert woken(waiters) == list(range(6))


@pytest.mark.parametrize("before_wakeup", [True, False])
def test_an_interrupted_waiter_loses_no_permit(before_wakeup: bool) -> None:
    wakeup, waiters = FairWakeup(), [Waiter() for _ in range(PERMITS)]
    interrupted: list[Any] = [Waiter() for _ in range(PERMITS)]
    for waiter in interrupted:
        waiter.unattended = True

    def interrupt() -> None:
        for waiter in interrupted:
            waiter.called = Interrupted()
            with pytest.raises(KeyboardInterrupt):
                wakeup.wait(waiter)

    if before_wakeup:
        interrupt()
        wakeup.call([*interrupted, *waiters])
    else:
        wakeup.call([*interrupted, *waiters])
        interrupt()
    assert woken(waiters) == list(range(PERMITS))


def test_an_unattended_waiter_wakes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    wakeup, waiter = FairWakeup(), Waiter()
    waiter.unattended = True
    wakeup.call([waiter])
    monkeypatch.setattr(wakeup, "_wake_next", Interrupted().acquire)
    wakeup.wait(waiter)


def test_no_waiter_is_left_asleep_when_threads_race() -> None:
    wakeup, queue = FairWakeup(), SimpleQueue[Waiter | None]()

    def wait_repeatedly() -> None:
        for _ in range(500):
            waiter = Waiter()
            queue.put(waiter)
            wakeup.wait(waiter)

    def wake_groups() -> None:
        while (waiter := queue.get()) is not None:
            group = [waiter]
            while not queue.empty() and (another := queue.get()) is not None:
                group.append(another)
            wakeup.call(group)

    waker = threading.Thread(target=wake_groups)
    waker.start()
    with ThreadPoolExecutor(16) as pool:
        for finished in [pool.submit(wait_repeatedly) for _ in range(16)]:
            finished.result(timeout=60)
    queue.put(None)
    waker.join(timeout=60)
    assert len(wakeup._free) == PERMITS
