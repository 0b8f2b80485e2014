"""Keeping the read models current: one runner a projection, over all processes; another takes over when it dies."""

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
from projections.engine import projection as engine
from projections.engine.poison import Parked, Skipped, park, parked, passed, said, skipped
from projections.engine.projection import Projection, catch_up, head_of, next_row
from projections.entitlements import ENTITLEMENTS
from projections.invoice_links import INVOICE_LINKS
from projections.orders import ORDERS
from projections.timeline import TIMELINE

PROJECTIONS = (ENTITLEMENTS, ALLOCATIONS, ORDERS, BILLING, INVOICE_LINKS, TIMELINE)
RETRY_S = 1.0
LONGEST_RETRY_S = 4.0
GATHER_S = 0.008
"""How long a runner that keeps up lets events gather, so that under load they share a transaction."""

LOOK_S = 0.01
LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, DatabaseUnavailable, LogUnavailable)
"""The database is away, and comes back. Any other error of it, as a value that a table refuses, comes back for ever."""

# A runner's commits need not reach the disk at once, for what is lost of them is projected again: rows and positions
# are lost together. The line is watched closely, so that the lock of a machine that fell silent is free in 4 seconds.
_SESSION = (
    "SELECT set_config('synchronous_commit', 'off', false), set_config('tcp_keepalives_idle', '1', false), "
    "set_config('tcp_keepalives_interval', '1', false), set_config('tcp_keepalives_count', '3', false)"
)
_HALTED = "projection %s is halted before position %s: %s"
_MOVED = Notifier()
"""Tells, within this process, that a projection has moved; beyond it, whoever waits looks every `LOOK_S`."""
logger = logging.getLogger(__name__)


class UnknownProjection(Refusal):
    """There is no read model of this name."""


def projection_named(name: str) -> Projection:
    """The projection of a name.

    Raises:
        UnknownProjection: there is none.
    """
    for projection in PROJECTIONS:
        if projection.name == name:
            return projection
    raise UnknownProjection(f"There is no projection {name}; there are {', '.join(p.name for p in PROJECTIONS)}.")


def lock_of(projection: Projection) -> str:
    """The name of the lock that whoever runs a projection holds."""
    return f"projection {projection.name}"


class Runner:
    """Runs one projection until it is told to stop, on a connection that is made anew when it breaks.

    An event that it cannot deal with halts this projection, and no other: it is found by halving the batch, and parked.
    `halted` says why, and so does health. Once somebody asks for another attempt, or skips the event, it goes on.
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
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Ask it to end, after the batch that is being projected."""
        self._stopped.set()
        self._log.news.tell()

    def stop(self) -> None:
        """Wait until it has ended."""
        self.end()
        self._thread.join()

    def _run(self) -> None:
        pause_s = RETRY_S
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                with connect(self._database_url) as conn:
                    self._follow(conn)
            except LOST as error:
                name = self.projection.name
                logger.warning("projection %s lost its database and tries again: %s", name, error)
                served = time.monotonic() - begun > LONGEST_RETRY_S
                pause_s = RETRY_S if served else min(2 * pause_s, LONGEST_RETRY_S)
                self._stopped.wait(pause_s)

    def _follow(self, conn: Connection[DictRow]) -> None:
        conn.execute(_SESSION)
        while not self._stopped.is_set() and not only_one(conn, lock_of(self.projection)):
            self._stopped.wait(RETRY_S)
        while not self._stopped.is_set():
            seen = self._log.news.count
            if self._halted_still(conn):
                self._stopped.wait(min(POLL_S, RETRY_S))
                continue
            passed_on = self.step(conn)
            if not passed_on:
                self._log.news.wait_past(seen, POLL_S)
            elif passed_on < engine.BATCH:
                self._stopped.wait(GATHER_S)

    def _halted_still(self, conn: Connection[DictRow]) -> bool:
        """Whether it is halted and nobody has asked for another attempt, nor made one needless."""
        if self.halted is None:
            return False
        query = "SELECT retry FROM projection.parked WHERE name = %s"
        row = conn.execute(query, (self.projection.name,)).fetchone()
        return row is not None and not row["retry"]

    def step(self, conn: Connection[DictRow]) -> int:
        """Project a batch; where that fails, half of it, and so on. Gives how many positions were passed."""
        name = self.projection.name
        try:
            position, count = catch_up(conn, self._log, self.projection, self._batch)
        except LOST:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, billing never guesses
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
            _MOVED.tell()
        if self.halted is not None:
            logger.warning("projection %s goes on", name)
            self.halted = None
        return count


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
    """Project what there is, or wait for whoever is projecting it. False where that was not done in time.

    A projection that is halted stays where it is, and is not waited for.
    """
    with connect(database_url) as conn:
        head, halted = log.head(), parked(conn)
        for projection in PROJECTIONS:
            can_go_on = projection.name not in halted or halted[projection.name].retry
            if can_go_on and only_one(conn, lock_of(projection)):
                runner = Runner(database_url, log, projection)
                while runner.step(conn):
                    continue
        halted = parked(conn)
        return wait(conn, head, timeout_s, [p for p in PROJECTIONS if p.name not in halted])


def positions(conn: Connection[DictRow]) -> Mapping[str, int]:
    """How far each projection has come."""
    found = conn.execute("SELECT name, position FROM read.positions").fetchall()
    reached = {row["name"]: row["position"] for row in found}
    return {projection.name: reached.get(projection.name, 0) for projection in PROJECTIONS}


def wait(
    conn: Connection[DictRow], position: int, timeout_s: float, projections: Sequence[Projection] = PROJECTIONS
) -> bool:
    """Wait until the projections have come to ``position``, for who reads what he has written. False: not in time."""
    deadline = time.monotonic() + timeout_s
    names = [projection.name for projection in projections]
    while True:
        seen, reached = _MOVED.count, positions(conn)
        if min((reached[name] for name in names), default=position) >= position:
            return True
        if time.monotonic() > deadline:
            return False
        _MOVED.wait_past(seen, LOOK_S)


@dataclass(frozen=True)
class Status:
    """How a projection stands: ``lag`` is how many positions the log is ahead; ``running``, whether anybody runs it."""

    name: str
    position: int
    lag: int
    running: bool
    parked: Parked | None
    skipped: Sequence[Skipped]

    @property
    def ok(self) -> bool:
        """Whether it can go on."""
        return self.parked is None


def statuses(conn: Connection[Any]) -> list[Status]:
    """How each projection stands, whoever runs it."""
    halted, reached, head = parked(conn), positions(conn), head_of(conn)
    return [
        Status(
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
    """Whether somebody holds the projection's lock."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_locks AS l, hashtextextended(%s, 0) AS key "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = key) AS run"
    )
    row = conn.execute(query, (lock_of(projection),)).fetchone()
    return bool(row and row["run"])
