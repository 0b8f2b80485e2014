"""Gapless numbers for documents that are rendered concurrently.

A number is printed on its document, so it is assigned before rendering, but becomes valid only in the commit of both.
Rendering each document after the commit of the one before would render them one at a time. Instead, numbers are
reserved as if the documents in progress were committed already, and each is committed after the one before it. If that
one fails, the later ones conflict and get new numbers: no gap, and no number twice.
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
    """A number, and the time of its assignment: a later number never has an earlier time.

    Its holder renders the document, calls `wait`, commits, and leaves the context that `NumberSequencer` gave.
    """

    number: str
    at: datetime
    series: CachedState
    """The series as the commit of this document will leave it."""

    before: NumberReservation | None
    ended: threading.Event = field(default_factory=threading.Event)
    issued: bool = False

    def wait(self) -> None:
        """Wait until the document with the number before this one is in the log.

        Raises:
            VersionConflict: that document failed, so this is not the next number.
        """
        if self.before is None:
            return
        self.before.ended.wait()
        if not self.before.issued:
            raise VersionConflict(f"The document before {self.number} was not issued, so that is not the next number.")


class NumberSequencer:
    """The number series of all documents in progress in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, NumberReservation] = {}

    @contextmanager
    def reserve(self, work: UnitOfWork, clock: Clock, seller: str, document_id: str) -> Iterator[NumberReservation]:
        """Reserve the next number of a seller, decided in a unit of work that is committed before the context ends."""
        with self._lock:
            at = clock.now()
            series = series_id(seller, at.year)
            before = self._last.get(series)
            if before:
                work.begin_at(INVOICE_SERIES, series, before.series)
            assign = AssignInvoiceNumber(at=at, seller=seller, year=at.year, document_id=document_id)
            number = work.do(INVOICE_SERIES, series, assign)[0].number
            reservation = self._last[series] = NumberReservation(
                number, at, work.resulting(INVOICE_SERIES, series), before
            )
        try:
            yield reservation
            reservation.issued = True
        finally:
            with self._lock:
                reservation.ended.set()
                if self._last.get(series) is reservation:
                    del self._last[series]
                    if (
                        before and not before.ended.is_set()
                    ):  # this one failed while the one before is still in progress
                        self._last[series] = before
                reservation.before = before = None  # or each would keep all earlier ones in memory
