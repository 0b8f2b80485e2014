"""Documents that are made at the same time, and numbered one after another.

A number is printed on its document, so it is given before the document is made, and counts only in the commit of both.
To make each document after the commit of the one before would make them one at a time. So the next number is given as
the documents that are being made will leave the series, and each is committed after the one before it. Where that one
fails, those behind it conflict, and are numbered anew: no gap, and no number twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from domain.invoice_series import INVOICE_SERIES, AssignInvoiceNumber, series_id
from infra.clock import Clock
from infra.event_log.log import VersionConflict
from infra.event_log.state_cache import CachedState
from infra.event_log.unit_of_work import UnitOfWork


@dataclass(eq=False)
class NumberReservation:
    """A number, and the moment at which it was given: a later number is never of an earlier moment.

    Who has it makes the document, waits, commits, and ends the context that gave it.
    """

    number: str
    at: datetime
    series: CachedState
    """As the commit of this document will leave it."""

    before: NumberReservation | None
    ended: threading.Event = field(default_factory=threading.Event)
    issued: bool = False

    def wait(self) -> None:
        """Wait until the document with the number before this one is in the log.

        Raises:
            VersionConflict: it has failed, so this is not the next number.
        """
        if self.before is None:
            return
        self.before.ended.wait()
        if not self.before.issued:
            raise VersionConflict(f"The document before {self.number} was not issued, so that is not the next number.")


class NumberSequencer:
    """The series that documents of this process are being numbered in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, NumberReservation] = {}

    @contextmanager
    def turn(self, work: UnitOfWork, clock: Clock, seller: str, document_id: str) -> Iterator[NumberReservation]:
        """The next number of a seller, decided in a unit of work; that is to be committed before the context ends."""
        with self._lock:
            at = clock.now()
            series = series_id(seller, at.year)
            before = self._last.get(series)
            if before:
                work.begin_at(INVOICE_SERIES, series, before.series)
            assign = AssignInvoiceNumber(at=at, seller=seller, year=at.year, document_id=document_id)
            number = work.do(INVOICE_SERIES, series, assign)[0].number
            turn = self._last[series] = NumberReservation(number, at, work.standing(INVOICE_SERIES, series), before)
        try:
            yield turn
            turn.issued = True
        finally:
            with self._lock:
                turn.ended.set()
                if self._last.get(series) is turn:
                    del self._last[series]
                    if before and not before.ended.is_set():  # this one has failed before its time
                        self._last[series] = before
                turn.before = before = None  # or each would hold all that came before it
