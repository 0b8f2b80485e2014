"""Notify threads of this process when the log has grown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

POLL_S = 0.5
"""How often a waiter looks by itself: notifications are a hint, and hints get lost."""


class Notifier:
    """Wakes whoever waits for something to happen in the log."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def tell(self) -> None:
        """Something happened."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    @property
    def count(self) -> int:
        """How often something happened. Who looks at it before he looks elsewhere misses nothing in between."""
        with self._condition:
            return self._count

    def wait_past(self, count: int, timeout_s: float) -> None:
        """Wait until there is more news than ``count``, or until time is up."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != count, timeout_s)

    def wait(self, timeout_s: float, *, until: Callable[[], bool]) -> bool:
        """Wait until ``until()`` holds: asked at each piece of news and every `POLL_S`. False where time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.count
            if until():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.wait_past(seen, min(POLL_S, left))
