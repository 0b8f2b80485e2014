"""Keeping the read models current: one runner a projection, over all processes; another takes over when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from infra.log import Log, LogUnavailable
from infra.postgres import DatabaseUnavailable, connect, only_one, position_of
from projections.allocations import ALLOCATIONS
from projections.billing import BILLING
from projections.engine import Projection, catch_up
from projections.entitlements import ENTITLEMENTS
from projections.invoice_links import INVOICE_LINKS
from projections.orders import ORDERS
from projections.timeline import TIMELINE

PROJECTIONS = (ENTITLEMENTS, ALLOCATIONS, ORDERS, BILLING, INVOICE_LINKS, TIMELINE)
IDLE_S = 5.0
RETRY_S = 1.0
LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, DatabaseUnavailable, LogUnavailable)
"""The database is away, and comes back. Any other error of it, as a value that a table refuses, comes back for ever."""
logger = logging.getLogger(__name__)


class Runner:
    """Runs one projection until it is told to stop, on a connection that is made anew when it breaks.

    An event that cannot be folded halts this projection, and no other: `halted` says why, and health reports it.
    """

    def __init__(self, database_url: str, log: Log, projection: Projection) -> None:
        self.projection = projection
        self.halted: str | None = None
        self._database_url = database_url
        self._log = log
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"projection-{projection.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Ask it to end, after the batch that is being projected."""
        self._stopped.set()

    def stop(self) -> None:
        """Wait until it has ended."""
        self.end()
        self._thread.join()

    def _run(self) -> None:
        name = self.projection.name
        while not self._stopped.is_set():
            try:
                with connect(self._database_url) as conn:
                    self._follow(conn)
            except LOST as error:
                logger.warning("projection %s lost its database and tries again: %s", name, error)
                self._stopped.wait(RETRY_S)
            except Exception as error:  # whatever it is, billing never guesses: halt, and say so
                self.halted = f"{type(error).__name__}: {error}"
                logger.exception("projection %s is halted", name)
                return

    def _follow(self, conn: Connection[DictRow]) -> None:
        while not self._stopped.is_set() and not only_one(conn, f"projection {self.projection.name}"):
            self._stopped.wait(RETRY_S)
        while not self._stopped.is_set():
            position, count = catch_up(conn, self._log, self.projection)
            if not count:
                self._log.wait(position, IDLE_S, unless=self._stopped)


@contextmanager
def running(database_url: str, log: Log, projections: Sequence[Projection] = PROJECTIONS) -> Iterator[list[Runner]]:
    """All projections, kept current while the context lasts."""
    runners = [Runner(database_url, log, projection) for projection in projections]
    for runner in runners:
        runner.start()
    try:
        yield runners
    finally:
        for runner in runners:
            runner.end()
        for runner in runners:
            runner.stop()


def bring_up_to_date(database_url: str, log: Log, timeout_s: float) -> bool:
    """Project what there is, or wait for whoever is projecting it. False where that was not done in time."""
    with connect(database_url) as conn:
        head = log.head()
        for projection in PROJECTIONS:
            if only_one(conn, f"projection {projection.name}"):
                while catch_up(conn, log, projection)[1]:
                    continue
        return wait(conn, head, timeout_s)


def positions(conn: Connection[DictRow]) -> Mapping[str, int]:
    """How far each projection has come."""
    return {projection.name: position_of(conn, projection.name) for projection in PROJECTIONS}


def wait(conn: Connection[DictRow], position: int, timeout_s: float) -> bool:
    """Wait until every projection has come to ``position``, for who reads what he has written. False: not in time."""
    deadline = time.monotonic() + timeout_s
    while min(positions(conn).values()) < position:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
