"""Group commit: concurrent appends share one statement, one commit and one flush to disk.

While a group is being written, the next one gathers: groups are as large as the load makes them, and a single append
waits for nothing. A stale append fails alone. If the connection breaks before the reply, the group is sent again, and
what the first attempt had written is recognised by the inbox, or by the rows themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

import psycopg
from eventsourcing.persistence import DataError, OperationalError
from psycopg import Connection
from psycopg.errors import ProgramLimitExceeded

from infra.event_log.append import Append, Result, appended
from infra.event_log.fair_wakeup import FairWakeup
from infra.event_log.recorder import LogRow
from infra.metrics import APPENDED, APPENDS, GROUP

GROUP_MAX: Final = 256
"""The largest number of appends in a group: more gain nothing, and each waits for the last."""

GROUP_BYTES_MAX: Final = 16 * 2**20
"""A group that reaches so many bytes takes no more appends: PostgreSQL accepts statements of up to 1 GB."""

_REFUSED: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.InternalError, ProgramLimitExceeded)
"""Errors of the database that concern the values rather than the database itself."""

_FIRST_VERSIONS: Final = "events_stream_version_key"
"""The constraint that refuses the first version of a stream that exists."""
_STALE: Final = ("stale", 0, 0)
_AHEAD: Final = ("tracked", 0, 0)

_CLOSED: Final = "The log was closed."
_MAIN_THREAD: Final = threading.main_thread().ident
_STORED = b"""
    SELECT e.stream, e.version, e.topic, e.state, e.position, e.recorded_at, e.account_id, e.correlation_id,
           e.causation_id, e.actor
      FROM log.events AS first JOIN log.events AS e ON e.position >= first.position AND e.position < first.position + %b
     WHERE first.stream = %b AND first.version = %b
     ORDER BY e.position
"""
_TRACKED = b"SELECT notification_id FROM log.tracking WHERE application_name = %b"
logger = logging.getLogger(__name__)


@dataclass
class GroupCommit:
    """Writes the appends of all threads on a connection of its own: in its own thread, or in that of a lone caller.

    Args:
        connect: returns a connection in autocommit, as the role that may append.
        on_commit: called after each commit, before its callers are woken.
    """

    connect: Callable[[], Connection[Any]]
    on_commit: Callable[[], None]
    _asked: SimpleQueue[Append] = field(default_factory=SimpleQueue)
    _later: list[Append] = field(default_factory=list)
    """Appends that could not share the last group."""
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that writes."""
    _more: SimpleQueue[bool] = field(default_factory=SimpleQueue)
    """True wakes the thread, False ends it."""
    _alone: bool = False
    """Whether the last group had a single append."""
    _wakeup: FairWakeup = field(default_factory=FairWakeup)
    _conn: Connection[Any] | None = None
    _closed: bool = False
    """Whether new appends are refused."""
    _ended: bool = False
    """Whether everything was written."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, append: Append) -> range:
        """Wait until an append is durable. Returns the positions of its events.

        Raises:
            IntegrityError: a stream is not at its expected version, or the tracking has passed this position.
            AlreadyHandled, MessageIdReused: see `infra.event_log.recorder.Recorder`.
            OperationalError: the database does not answer; the append may have been written.
        """
        if threading.get_ident() == _MAIN_THREAD:
            append.waiter.unattended = True  # an interrupt there could keep the permit of others
        self._submit([append])
        self._wakeup.wait(append.waiter)
        return append.outcome()

    def append_all(self, appends: Sequence[Append]) -> None:
        """Wait until all appends are durable, in as few commits as possible.

        Raises:
            as `append`, for the first that failed; the others may have been written.
        """
        for append in appends:
            append.waiter.unattended = True  # one thread waits for all, and would keep the permits of later ones
        self._submit(appends)
        for append in appends:
            self._wakeup.wait(append.waiter)
        for append in appends:
            append.outcome()

    def close(self) -> None:
        """Stop, after the appends that were submitted before."""
        self._closed = True
        self._more.put(False)
        self._thread.join()

    def _submit(self, appends: Sequence[Append]) -> None:
        """Submit appends; on a closed log they fail at once."""
        for append in appends:
            self._asked.put(append)
        if not self._closed:
            self._ensure_written()
            return
        self._thread.join()  # what it left over was submitted too late
        with self._writing:
            while group := self._gathered():
                self._end(group, [OperationalError(_CLOSED) for _ in group])

    def _ensure_written(self) -> None:
        """Write what was submitted: in this thread if it seems to be alone, else in the writer's thread.

        The main thread never writes: an interrupt there would hit what others wait for.
        """
        if self._writing.locked():
            return  # the thread that writes looks again
        if not self._alone or threading.get_ident() == _MAIN_THREAD or self._write_next():
            self._more.put(True)

    def _run(self) -> None:
        while self._more.get():
            while self._write_next():
                pass
        with self._writing:
            while group := self._gathered():
                self._write(group)
            self._ended = True
            if self._conn is not None:
                self._conn.close()

    def _write_next(self) -> bool:
        """Write the next group, unless another thread is writing. Returns whether more was submitted meanwhile.

        A caller first submits and then checks for a writer; a writer first stops and then checks for submissions: so
        one of the two handles each append.
        """
        if not self._writing.acquire(blocking=False):
            return False
        try:
            if group := self._gathered():
                self._write(group)
        finally:
            self._writing.release()
        return bool(self._later) or not self._asked.empty()

    def _gathered(self) -> Sequence[Append]:
        """Return the next group of submitted appends."""
        waiting = self._later
        size = sum(append.size for append in waiting)
        try:
            while len(waiting) < GROUP_MAX and size < GROUP_BYTES_MAX:
                waiting.append(self._asked.get_nowait())
                size += waiting[-1].size
        except Empty:
            pass
        group, self._later = _compatible(waiting)
        return group

    def _write(self, group: Sequence[Append]) -> None:
        """Write a group. Whatever happens, each of its appends gets a result."""
        self._alone = len(group) == 1
        results: Sequence[Result | Exception]
        try:
            results = self._sent(group)
        except Exception as error:  # noqa: BLE001 - each of the callers raises it
            results = [OperationalError(f"{type(error).__name__}: {error}") for _ in group]
        else:
            self.on_commit()
            written = [one[2] - one[1] for one in results if not isinstance(one, Exception) and one[0] == "appended"]
            GROUP.observe(len(group))
            APPENDS.inc(len(written))
            APPENDED.inc(sum(written))
        self._end(group, results)

    def _end(self, group: Sequence[Append], results: Sequence[Result | Exception]) -> None:
        """Deliver each append's result and wake its caller."""
        for append, result in zip(group, results, strict=True):
            append.result = result
        self._wakeup.call([append.waiter for append in group])

    def _sent(self, group: Sequence[Append]) -> Sequence[Result | Exception]:
        """Send a group, and again if the connection broke before the reply."""
        try:
            return self._results(group)
        except psycopg.OperationalError:
            if self._conn is not None and not self._conn.broken:
                raise  # the database replied
            logger.warning("the connection broke before the reply to %s appends; they are sent again", len(group))
            return [self._recognised(*both) for both in zip(group, self._results(group), strict=True)]

    def _results(self, group: Sequence[Append]) -> Sequence[Result | Exception]:
        """Return the result of each append. If the database refuses one, each is sent alone, so that no other fails."""
        if self._ended:
            raise OperationalError(_CLOSED)
        if self._conn is None or self._conn.closed:
            self._conn = self.connect()
        try:
            return appended(self._conn, group)
        except _REFUSED as error:
            if len(group) > 1:
                return [result for append in group for result in self._results([append])]
            if error.diag.constraint_name == _FIRST_VERSIONS:
                return [_STALE]
            return [DataError(error.diag.message_primary or str(error))]

    def _recognised(self, append: Append, result: Result | Exception) -> Result | Exception:
        """Return the result of an append that was sent twice: the first attempt may have succeeded without a reply.

        The inbox recognises a message; without one, the rows are compared.
        """
        if result in {_STALE, _AHEAD} and (positions := self._stored(append)) is not None:
            return "appended", positions.start, positions.stop
        return result

    def _stored(self, append: Append) -> range | None:
        """Return the positions of an append's events, if exactly these events are stored consecutively."""
        assert self._conn is not None
        if not append.rows:
            tracking = append.tracking
            found = tracking and self._conn.execute(_TRACKED, (tracking.application_name,)).fetchone()
            return range(0) if found and tracking and found["notification_id"] == tracking.notification_id else None
        first = append.rows[0]
        asked = (len(append.rows), first.originator_id, first.originator_version)
        stored = [LogRow(*row.values()) for row in self._conn.execute(_STORED, asked).fetchall()]
        if [row._replace(id=0) for row in stored] != [row._replace(id=0) for row in append.rows]:
            return None
        return range(stored[0].id, stored[-1].id + 1)


def _compatible(waiting: Sequence[Append]) -> tuple[list[Append], list[Append]]:
    """Split appends into those that can share a group, in order, and the others, which follow them."""
    taken: set[str] = set()
    group: list[Append] = []
    later: list[Append] = []
    for append in waiting:
        (group if taken.isdisjoint(append.keys) else later).append(append)
        taken |= append.keys  # also of those that wait, so that none overtakes another on its stream
    return group, later
