"""A cache of aggregate states in the memory of this process, so that busy aggregates are not replayed each time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

STATES_MAX: Final = 10_000
"""The largest number of states: the least recently used are evicted first."""


@dataclass(frozen=True, slots=True)
class CachedState:
    """The state of an aggregate at a version of its stream, and the account of its first event."""

    version: int
    state: Any
    account_id: str | None


class StateCache:
    """May lag behind the log, and is never ahead of it. Appends check versions; without an append, the log is read."""

    def __init__(self, states_max: int = STATES_MAX) -> None:
        self._states_max = states_max
        self._states: OrderedDict[str, CachedState] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stream: str) -> CachedState | None:
        """Return the cached state of a stream, or None."""
        with self._lock:
            if stream in self._states:
                self._states.move_to_end(stream)
            return self._states.get(stream)

    def keep(self, stream: str, state: CachedState) -> None:
        """Cache a state, unless a later one is cached."""
        with self._lock:
            kept = self._states.get(stream)
            if kept is None or kept.version < state.version:
                self._states[stream] = state
            self._states.move_to_end(stream)
            if len(self._states) > self._states_max:
                self._states.popitem(last=False)
