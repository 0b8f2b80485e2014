"""Notify threads of this process when the log has grown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

POLL_S = 0.5
"""How often a waiter polls: notifications are hints, and may be lost."""


class Notifier:
    """Wakes the threads that wait for new events."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def notify(self) -> None:
        """Wake all waiting threads."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    @property
    def count(self) -> int:
        """The number of notifications so far. Read it before a check, and `wait_past` it after, to miss none."""
        with self._condition:
            return self._count

    def wait_past(self, count: int, timeout_s: float) -> None:
        """Wait until there are more notifications than ``count``, or for ``timeout_s``."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != count, timeout_s)

    def wait(self, timeout_s: float, *, until: Callable[[], bool]) -> bool:
        """Wait until ``until()``, checked at each notification and every `POLL_S`. Returns False on a timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.count
            if until():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.wait_past(seen, min(POLL_S, left))
