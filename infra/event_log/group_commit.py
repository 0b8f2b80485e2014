"""Group commit: whoever appends at the same time shares one statement, one commit and one flush to the disk.

While a group is on its way, the next one gathers; so groups are as large as the load makes them, and an append alone
waits for nobody. A stale append fails alone. When the connection breaks in the middle, the group is sent once more, and
what the first attempt had written is recognised: by the inbox, or by the rows themselves.
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

from infra.event_log.append import Append, Said, appended
from infra.event_log.fair_wakeup import FairWakeup
from infra.event_log.recorder import LogRow
from infra.metrics import APPENDED, APPENDS, GROUP

MAX_GROUP: Final = 256
"""How many appends share a commit at most: more gain nothing, and all of them wait for the last."""

MAX_GROUP_BYTES: Final = 16 * 2**20
"""So much is a group, and then one more append: a statement has 1 GB at most."""

_REFUSED: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.InternalError, ProgramLimitExceeded)
"""What the database says where it is for the values, and not for itself, that it does not take them."""

_FIRST_VERSIONS: Final = "events_stream_version_key"
"""The constraint that refuses the first version of a stream which has begun before."""
_STALE: Final = ("stale", 0, 0)
_AHEAD: Final = ("tracked", 0, 0)

_CLOSED: Final = "The log was closed."
_MAIN_THREAD: Final = threading.main_thread().ident
_STANDING = b"""
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
    """Writes what others want to append, on a connection of its own: in a thread, or in that of who appends alone.

    Args:
        connect: makes a connection, in autocommit, as the role that may append.
        told: is called after each commit, before those who waited for it go on.
    """

    connect: Callable[[], Connection[Any]]
    told: Callable[[], None]
    _asked: SimpleQueue[Append] = field(default_factory=SimpleQueue)
    _later: list[Append] = field(default_factory=list)
    """What could not share the last group."""
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Whoever writes holds it."""
    _more: SimpleQueue[bool] = field(default_factory=SimpleQueue)
    """Wakes the thread; ends it where false."""
    _alone: bool = False
    """Whether the last group was of one."""
    _turns: FairWakeup = field(default_factory=FairWakeup)
    _conn: Connection[Any] | None = None
    _closed: bool = False
    """Whether nothing more may be asked."""
    _ended: bool = False
    """Whether nothing more is written."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._write_on, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, append: Append) -> range:
        """Wait until it is written, durably. Gives the positions of its events.

        Raises:
            IntegrityError: a stream is not at its expected version, or the tracking has come further than this.
            AlreadyHandled, MessageIdReused: see `infra.event_log.recorder.Recorder`.
            OperationalError: the database does not answer; what was to be appended may stand there.
        """
        if threading.get_ident() == _MAIN_THREAD:
            append.waiter.unattended = True  # an interrupt may come there, while it had a turn that others wait for
        self._ask([append])
        self._turns.wait(append.waiter)
        return append.outcome()

    def append_all(self, appends: Sequence[Append]) -> None:
        """Wait until all of them are written, in as few commits as it can.

        Raises:
            as `append` does, for the first that failed; the others may stand there.
        """
        for append in appends:
            append.waiter.unattended = True  # one thread waits for all, and would keep turns of later ones
        self._ask(appends)
        for append in appends:
            self._turns.wait(append.waiter)
        for append in appends:
            append.outcome()

    def close(self) -> None:
        """End, after what was asked before."""
        self._closed = True
        self._more.put(False)
        self._thread.join()

    def _ask(self, appends: Sequence[Append]) -> None:
        """Ask for them to be written; where the log was closed, they end at once, and say so."""
        for append in appends:
            self._asked.put(append)
        if not self._closed:
            self._see_to_it()
            return
        self._thread.join()  # what it has left was asked too late
        with self._writing:
            while group := self._gathered():
                self._end(group, [OperationalError(_CLOSED) for _ in group])

    def _see_to_it(self) -> None:
        """Let what was asked be written: here where nobody else seems to append, by the thread where others do.

        An interrupt comes to the main thread, and there it would come in the midst of what others wait for.
        """
        if self._writing.locked():
            return  # who writes looks again
        if not self._alone or threading.get_ident() == _MAIN_THREAD or self._write_next():
            self._more.put(True)

    def _write_on(self) -> None:
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
        """Write what is asked, unless somebody else writes. True where more was asked meanwhile, which nobody sees to.

        Whoever asks first asks, and then looks whether somebody writes; who writes first ceases, and then looks whether
        more was asked: so one of the two sees to it.
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
        """The next group, of what is asked by now."""
        waiting = self._later
        size = sum(append.size for append in waiting)
        try:
            while len(waiting) < MAX_GROUP and size < MAX_GROUP_BYTES:
                waiting.append(self._asked.get_nowait())
                size += waiting[-1].size
        except Empty:
            pass
        group, self._later = _compatible(waiting)
        return group

    def _write(self, group: Sequence[Append]) -> None:
        """Write a group. Whatever happens, each of its appends is ended."""
        self._alone = len(group) == 1
        of_each: Sequence[Said | Exception]
        try:
            of_each = self._sent(group)
        except Exception as error:  # noqa: BLE001 - each of the callers raises it
            of_each = [OperationalError(f"{type(error).__name__}: {error}") for _ in group]
        else:
            self.told()
            written = [one[2] - one[1] for one in of_each if not isinstance(one, Exception) and one[0] == "appended"]
            GROUP.observe(len(group))
            APPENDS.inc(len(written))
            APPENDED.inc(sum(written))
        self._end(group, of_each)

    def _end(self, group: Sequence[Append], of_each: Sequence[Said | Exception]) -> None:
        """Say to each what became of it."""
        for append, one in zip(group, of_each, strict=True):
            append.said = one
        self._turns.call([append.waiter for append in group])

    def _sent(self, group: Sequence[Append]) -> Sequence[Said | Exception]:
        """What is said of a group, sent a second time where the connection broke before the answer came."""
        try:
            return self._said(group)
        except psycopg.OperationalError:
            if self._conn is not None and not self._conn.broken:
                raise  # it was answered
            logger.warning("the line broke while %s appends were on their way; they are sent again", len(group))
            return [self._recognised(*both) for both in zip(group, self._said(group), strict=True)]

    def _said(self, group: Sequence[Append]) -> Sequence[Said | Exception]:
        """What the database says of each append; where it refuses one, of each by itself, so that no other fails."""
        if self._ended:
            raise OperationalError(_CLOSED)
        if self._conn is None or self._conn.closed:
            self._conn = self.connect()
        try:
            return appended(self._conn, group)
        except _REFUSED as error:
            if len(group) > 1:
                return [said for append in group for said in self._said([append])]
            if error.diag.constraint_name == _FIRST_VERSIONS:
                return [_STALE]
            return [DataError(error.diag.message_primary or str(error))]

    def _recognised(self, append: Append, said: Said | Exception) -> Said | Exception:
        """What became of an append that was sent twice: the first time may have succeeded, and been lost on the way.

        The inbox says so itself; where there was no message, the rows do.
        """
        if said in {_STALE, _AHEAD} and (positions := self._standing(append)) is not None:
            return "appended", positions.start, positions.stop
        return said

    def _standing(self, append: Append) -> range | None:
        """Where an append's events stand, where all that stands there are these very events, one after the other."""
        assert self._conn is not None
        if not append.rows:
            tracking = append.tracking
            found = tracking and self._conn.execute(_TRACKED, (tracking.application_name,)).fetchone()
            return range(0) if found and tracking and found["notification_id"] == tracking.notification_id else None
        begins = append.rows[0]
        asked = (len(append.rows), begins.originator_id, begins.originator_version)
        stand = [LogRow(*row.values()) for row in self._conn.execute(_STANDING, asked).fetchall()]
        if [row._replace(id=0) for row in stand] != [row._replace(id=0) for row in append.rows]:
            return None
        return range(stand[0].id, stand[-1].id + 1)


def _compatible(waiting: Sequence[Append]) -> tuple[list[Append], list[Append]]:
    """Those that can share a group, in their order; and the others, who come after them."""
    taken: set[str] = set()
    group: list[Append] = []
    later: list[Append] = []
    for append in waiting:
        (group if taken.isdisjoint(append.keys) else later).append(append)
        taken |= append.keys  # also of those who wait, so that nobody overtakes on a stream
    return group, later
