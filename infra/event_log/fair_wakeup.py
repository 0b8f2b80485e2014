"""Fair wake-up: resume waiting threads oldest first, a few at a time.

Each woken thread needs the GIL. If many are woken at once they compete for it, and the first woken are not the first to
run: with 64 writers, the slowest hundredth waited half as long again, and throughput fell by a tenth. So there are a
few permits: a woken thread holds one, and passes it on as soon as it runs. If that takes long, because something else
holds the GIL, all waiting threads are woken: otherwise each would wait for it again.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

PERMITS: Final = 2
"""The number of permits: if one woken thread does not get a core at once, the other runs."""

LATE_S: Final = 2 * sys.getswitchinterval()
"""A thread that waited for so long is woken without a permit: twice the time for which a busy thread keeps the GIL."""


class Waiter:
    """One waiting thread. ``unattended`` waiters take no permit: they wait for more, or may be interrupted."""

    def __init__(self) -> None:
        self.unattended = False
        self.called = threading.Lock()
        self.called.acquire()
        self.since = 0.0
        self.permit: list[object] = []
        """Its permit, from its wake-up until a thread takes it out and returns it."""


class FairWakeup:
    """Wakes waiters, oldest first.

    It needs no lock: a thread that returns a permit looks for waiters after that, and a thread that adds waiters looks
    for permits after that, so one of the two sees both.
    """

    def __init__(self) -> None:
        self._free = [object() for _ in range(PERMITS)]
        self._waiters: deque[Waiter] = deque()

    def call(self, waiters: Sequence[Waiter]) -> None:
        """Wake waiters, after all earlier ones."""
        now = monotonic()
        for waiter in waiters:
            waiter.since = now
        self._waiters.extend(waiters)
        self._wake_next()

    def wait(self, waiter: Waiter) -> None:
        """Wait for the wake-up, then wake the next."""
        waiter.called.acquire()
        if not waiter.unattended:
            self._give_back(waiter)
            self._wake_next()

    def _wake_next(self) -> None:
        """Wake waiters while there are permits, or while the oldest is late."""
        while self._waiters:
            permit = _taken(self._free)
            if permit is None and not self._late():
                return  # the thread that returns a permit continues
            try:
                waiter = self._waiters.popleft()
            except IndexError:  # another thread was faster
                if permit is not None:
                    self._free.append(permit)
                continue
            if permit is not None:
                waiter.permit.append(permit)
            waiter.called.release()
            if waiter.unattended:
                self._give_back(waiter)

    def _late(self) -> bool:
        try:
            return monotonic() - self._waiters[0].since > LATE_S
        except IndexError:
            return False

    def _give_back(self, waiter: Waiter) -> None:
        if (permit := _taken(waiter.permit)) is not None:
            self._free.append(permit)


def _taken(permits: list[object]) -> object | None:
    """Take a permit; None if there is none, or another thread was faster."""
    try:
        return permits.pop() if permits else None  # quicker than an exception
    except IndexError:
        return None
