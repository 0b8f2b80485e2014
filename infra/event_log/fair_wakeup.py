"""Who has waited goes on in turn: the earliest first, and few at a time.

A thread that is woken wants the interpreter's lock. Where many are woken at once they are in each other's way, and
those who were woken first are not those who go on first: the slowest hundredth of 64 writers waited half as long again,
and all of them wrote a tenth less. So there are a few turns; whoever is woken has one, and gives it to the next as soon
as it runs. Where that takes long, since something else keeps the lock, all are woken: each would wait for that anew.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

AT_ONCE: Final = 2
"""How many turns there are: where one of the woken is not given a core at once, the other goes on."""

LATE_S: Final = 2 * sys.getswitchinterval()
"""Who has waited for so long waits for no turn. A thread that computes keeps the lock for half of it at a time."""


class Waiter:
    """One thread's waiting; ``unattended``, without a turn, where it waits for more, or may be interrupted."""

    def __init__(self) -> None:
        self.unattended = False
        self.called = threading.Lock()
        self.called.acquire()
        self.since = 0.0
        self.turn: list[object] = []
        """Holds its turn, from when it is called until that is given back by whoever takes it out."""


class FairWakeup:
    """Calls waiters, the earliest first.

    It needs no lock: whoever gives a turn back looks for waiters after that, and whoever adds waiters looks for turns
    after that; so one of the two sees both.
    """

    def __init__(self) -> None:
        self._free = [object() for _ in range(AT_ONCE)]
        self._waiters: deque[Waiter] = deque()

    def call(self, waiters: Sequence[Waiter]) -> None:
        """Call them, after all who were to be called before."""
        now = monotonic()
        for waiter in waiters:
            waiter.since = now
        self._waiters.extend(waiters)
        self._go_on()

    def wait(self, waiter: Waiter) -> None:
        """Wait until it is called, and let the next go on."""
        waiter.called.acquire()
        if not waiter.unattended:
            self._give_back(waiter)
            self._go_on()

    def _go_on(self) -> None:
        """Call the first, and the next, while there is a turn for them or they are late."""
        while self._waiters:
            turn = _taken(self._free)
            if turn is None and not self._late():
                return  # whoever gives a turn back goes on
            try:
                waiter = self._waiters.popleft()
            except IndexError:  # another thread was before us
                if turn is not None:
                    self._free.append(turn)
                continue
            if turn is not None:
                waiter.turn.append(turn)
            waiter.called.release()
            if waiter.unattended:
                self._give_back(waiter)

    def _late(self) -> bool:
        try:
            return monotonic() - self._waiters[0].since > LATE_S
        except IndexError:
            return False

    def _give_back(self, waiter: Waiter) -> None:
        if (turn := _taken(waiter.turn)) is not None:
            self._free.append(turn)


def _taken(turns: list[object]) -> object | None:
    """One of them; none where there is none, or another thread was before us."""
    try:
        return turns.pop() if turns else None  # for an exception would take longer
    except IndexError:
        return None
