"""Keep the read models current: one runner for each projection over all processes, with failover."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from domain.messages import Refusal
from infra.event_log.log import Log, LogUnavailable
from infra.event_log.notifications import POLL_S, Notifier
from infra.postgres.connections import DatabaseUnavailable, connect, only_one
from projections.allocations import ALLOCATIONS
from projections.billing import BILLING
from projections.engine import batches as engine
from projections.engine.batches import catch_up, head_of, next_row
from projections.engine.poison import Parked, Skipped, park, parked, passed, said, skipped
from projections.engine.projection import Projection
from projections.entitlements import ENTITLEMENTS
from projections.invoice_links import INVOICE_LINKS
from projections.orders import ORDERS
from projections.timeline import TIMELINE

PROJECTIONS = (ENTITLEMENTS, ALLOCATIONS, ORDERS, BILLING, INVOICE_LINKS, TIMELINE)
RETRY_S = 1.0
RETRY_MAX_S = 4.0
GATHER_S = 0.008
"""How long a runner that keeps up waits for more events, so that under load they share a transaction."""

POLL_POSITIONS_S = 0.01
LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, DatabaseUnavailable, LogUnavailable)
"""Errors that pass once the database is back. Any other, as a value that a table refuses, is permanent."""

# The commits of a runner need not be flushed at once: rows and positions are lost together, and projected again.
# Keepalives are frequent, so that the lock of a machine that fell silent is free after 4 seconds.
_SESSION = (
    "SELECT set_config('synchronous_commit', 'off', false), set_config('tcp_keepalives_idle', '1', false), "
    "set_config('tcp_keepalives_interval', '1', false), set_config('tcp_keepalives_count', '3', false)"
)
_HALTED = "projection %s is halted before position %s: %s"
_MOVED = Notifier()
"""Notifies waiters in this process that a projection moved; those in others poll every `POLL_POSITIONS_S`."""
logger = logging.getLogger(__name__)


class UnknownProjection(Refusal):
    """No read model has this name."""


def projection_named(name: str) -> Projection:
    """Return the projection of a name.

    Raises:
        UnknownProjection: none has it.
    """
    for projection in PROJECTIONS:
        if projection.name == name:
            return projection
    raise UnknownProjection(
        f"There is no projection {name}; the projections are {', '.join(p.name for p in PROJECTIONS)}."
    )


def lock_of(projection: Projection) -> str:
    """Return the name of the lock that the process which runs a projection holds."""
    return f"projection {projection.name}"


class Runner:
    """Runs one projection until it is stopped, and reconnects when its connection breaks.

    An event that it cannot handle is found by halving the batch, and parked. It halts this projection and no other,
    until a person retries or skips it; `halted` is the error, and health reports it.
    """

    def __init__(self, database_url: str, log: Log, projection: Projection) -> None:
        self.projection = projection
        self.halted: str | None = None
        self._database_url = database_url
        self._log = log
        self._batch = engine.BATCH
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"projection-{projection.name}", daemon=True)

    def start(self) -> None:
        """Start."""
        self._thread.start()

    def end(self) -> None:
        """Ask it to end after the batch in progress."""
        self._stopped.set()
        self._log.notifier.notify()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self.end()
        self._thread.join()

    def _run(self) -> None:
        pause_s = RETRY_S
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                with connect(self._database_url) as conn:
                    self._follow(conn)
            except LOST as error:
                name = self.projection.name
                logger.warning("projection %s lost its database and retries: %s", name, error)
                served = time.monotonic() - started > RETRY_MAX_S
                pause_s = RETRY_S if served else min(2 * pause_s, RETRY_MAX_S)
                self._stopped.wait(pause_s)

    def _follow(self, conn: Connection[DictRow]) -> None:
        conn.execute(_SESSION)
        while not self._stopped.is_set() and not only_one(conn, lock_of(self.projection)):
            self._stopped.wait(RETRY_S)
        while not self._stopped.is_set():
            seen = self._log.notifier.count
            if self._is_still_halted(conn):
                self._stopped.wait(min(POLL_S, RETRY_S))
                continue
            count = self.step(conn)
            if not count:
                self._log.notifier.wait_past(seen, POLL_S)
            elif count < engine.BATCH:
                self._stopped.wait(GATHER_S)

    def _is_still_halted(self, conn: Connection[DictRow]) -> bool:
        """Whether it is halted, and the event is still parked without a request to retry."""
        if self.halted is None:
            return False
        query = "SELECT retry FROM projection.parked WHERE name = %s"
        row = conn.execute(query, (self.projection.name,)).fetchone()
        return row is not None and not row["retry"]

    def step(self, conn: Connection[DictRow]) -> int:
        """Project a batch; after a failure, half of it, and so on. Returns the number of positions passed."""
        name = self.projection.name
        try:
            position, count = catch_up(conn, self._log, self.projection, self._batch)
        except LOST:
            raise
        except Exception as error:  # noqa: BLE001 - any error halts: billing never guesses
            if self._batch > 1:
                self._batch //= 2
                return 1
            row = next_row(conn, self.projection)
            assert row is not None
            park(conn, self.projection, row, error)
            if self.halted is None:
                logger.error(_HALTED, name, row.id, said(error))  # noqa: TRY400 - the traceback is parked
            self.halted = said(error)
            return 0
        if count:
            if self._batch < engine.BATCH or self.halted:
                passed(conn, name, position)
            self._batch = min(2 * self._batch, engine.BATCH)
            _MOVED.notify()
        if self.halted is not None:
            logger.warning("projection %s continues", name)
            self.halted = None
        return count


@contextmanager
def running(database_url: str, log: Log, projections: Sequence[Projection] = PROJECTIONS) -> Iterator[list[Runner]]:
    """Keep all projections current while the context lasts."""
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
    """Project all events, or wait for the processes that do. Returns False on a timeout.

    Halted projections are neither moved nor waited for.
    """
    with connect(database_url) as conn:
        head, halted = log.head(), parked(conn)
        for projection in PROJECTIONS:
            can_continue = projection.name not in halted or halted[projection.name].retry
            if can_continue and only_one(conn, lock_of(projection)):
                runner = Runner(database_url, log, projection)
                while runner.step(conn):
                    continue
        halted = parked(conn)
        return wait(conn, head, timeout_s, [p for p in PROJECTIONS if p.name not in halted])


def positions(conn: Connection[DictRow]) -> Mapping[str, int]:
    """Return the position of each projection."""
    found = conn.execute("SELECT name, position FROM read.positions").fetchall()
    reached = {row["name"]: row["position"] for row in found}
    return {projection.name: reached.get(projection.name, 0) for projection in PROJECTIONS}


def wait(
    conn: Connection[DictRow], position: int, timeout_s: float, projections: Sequence[Projection] = PROJECTIONS
) -> bool:
    """Wait until projections reach ``position``, to read one's own writes. Returns False on a timeout."""
    deadline = time.monotonic() + timeout_s
    names = [projection.name for projection in projections]
    while True:
        seen, reached = _MOVED.count, positions(conn)
        if min((reached[name] for name in names), default=position) >= position:
            return True
        if time.monotonic() > deadline:
            return False
        _MOVED.wait_past(seen, POLL_POSITIONS_S)


@dataclass(frozen=True)
class ProjectionStatus:
    """The state of a projection: ``lag`` in positions, and ``running``, whether any process runs it."""

    name: str
    position: int
    lag: int
    running: bool
    parked: Parked | None
    skipped: Sequence[Skipped]

    @property
    def ok(self) -> bool:
        """Whether it is not halted."""
        return self.parked is None


def statuses(conn: Connection[Any]) -> list[ProjectionStatus]:
    """Return the state of each projection, whichever process runs it."""
    halted, reached, head = parked(conn), positions(conn), head_of(conn)
    return [
        ProjectionStatus(
            name=projection.name,
            position=reached[projection.name],
            lag=max(0, head - reached[projection.name]),
            running=_is_run(conn, projection),
            parked=halted.get(projection.name),
            skipped=skipped(conn, projection.name),
        )
        for projection in PROJECTIONS
    ]


def _is_run(conn: Connection[Any], projection: Projection) -> bool:
    """Whether a process holds the lock of the projection."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_locks AS l, hashtextextended(%s, 0) AS key "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = key) AS run"
    )
    row = conn.execute(query, (lock_of(projection),)).fetchone()
    return bool(row and row["run"])
