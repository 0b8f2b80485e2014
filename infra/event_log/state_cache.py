"""States of aggregates as they were lately, in this process's memory: a busy one is not folded anew each time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

MOST: Final = 10_000
"""How many states are kept: the least recently used ones go first."""


@dataclass(frozen=True, slots=True)
class CachedState:
    """An aggregate's state at a version of its stream, and the account of its first event."""

    version: int
    state: Any
    account_id: str | None


class StateCache:
    """May be behind the log, never ahead of it: an append checks versions, and who appends nothing asks the log."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._states: OrderedDict[str, CachedState] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stream: str) -> CachedState | None:
        """The state of a stream, where it is kept."""
        with self._lock:
            if stream in self._states:
                self._states.move_to_end(stream)
            return self._states.get(stream)

    def keep(self, stream: str, state: CachedState) -> None:
        """Keep a state, unless a later one is kept."""
        with self._lock:
            kept = self._states.get(stream)
            if kept is None or kept.version < state.version:
                self._states[stream] = state
            self._states.move_to_end(stream)
            if len(self._states) > self._most:
                self._states.popitem(last=False)
