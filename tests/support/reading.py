"""A cached view of a log: a log only grows, so each event is read once."""

from __future__ import annotations

import threading

from infra.event_log.log import Log
from infra.recorded import Recorded

PAGE = 1000


class Reader:
    """A log, read to its end. A person erased meanwhile stays readable here, as in any cache."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._read: list[Recorded] = []
        self._reading = threading.Lock()

    def history(self) -> list[Recorded]:
        """Every event so far, in order."""
        with self._reading:
            while found := self._log.read(self._read[-1].position if self._read else 0, limit=PAGE):
                self._read += found
            return list(self._read)
