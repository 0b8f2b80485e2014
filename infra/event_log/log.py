"""The event log: append to several streams in one commit, load a stream, read from a position, wait for events.

It uses a recorder and a mapper with the interfaces of the eventsourcing library: on PostgreSQL
(`infra.event_log.postgres_recorder`) or in memory. Nothing above `infra` knows the library.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from eventsourcing.persistence import IntegrityError, OperationalError

from domain.messages import Event
from infra import tracing
from infra.event_log.mapper import PydanticMapper
from infra.event_log.notifications import Notifier
from infra.event_log.recorder import InboxEntry, LogRow, Recorder, Snapshot, StoredDocument, as_notifications
from infra.event_log.state_cache import StateCache
from infra.recorded import Cause, Recorded


class VersionConflict(Exception):
    """A stream is not at its expected version (optimistic concurrency); load it and decide again."""


class LogUnavailable(Exception):
    """The database of the log did not answer, after retries. An append may have been written."""


class _Available:
    """Raises `LogUnavailable` if the database does not answer."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OperationalError):
            raise LogUnavailable(f"The log does not answer: {' '.join(str(error).split())}") from error


_available = _Available()
"""A context manager made of a generator would take as long as everything else in `Log.append`."""


@dataclass(frozen=True, slots=True)
class Change:
    """New events of one stream, after its ``expected_version`` (0 for a new stream)."""

    stream: str
    expected_version: int
    events: Sequence[Event]


class Log:
    """The log, as the rest of the program uses it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recent = StateCache()
        self._recorder = recorder
        self._mapper = PydanticMapper(recorder.keys)
        self._concealing = PydanticMapper(None)

    @property
    def notifier(self) -> Notifier:
        """Notifies waiters of new events."""
        return self._recorder.notifier

    def decoded(self, row: LogRow) -> Recorded:
        """Return the event of a row that the caller read in a transaction of its own. Personal data stays encrypted.

        Raises:
            UnreadableEvent: names its position and what is wrong.
        """
        return self._concealing.recorded(row)

    def encoded(self, recorded: Recorded) -> LogRow:
        """Return the row of an event."""
        return self._mapper.row(recorded)

    def append(
        self,
        changes: Sequence[Change],
        *,
        account_id: str | None,
        cause: Cause,
        at: datetime,
        documents: Sequence[StoredDocument] = (),
        received: InboxEntry | None = None,
    ) -> list[Recorded]:
        """Append all changes and documents, and record their message in the inbox, in one commit or not at all.

        Raises:
            VersionConflict: one of the streams is not at its expected version.
            AlreadyHandled, MessageIdReused: the message was handled before, or its id was used by another one.
            LogUnavailable: the database does not answer; all methods here raise it.
        """
        recorded = [
            Recorded(change.stream, change.expected_version + n, event, account_id, cause, at)
            for change in changes
            for n, event in enumerate(change.events, start=1)
        ]
        if not recorded and received is None:
            return []
        started = time.time_ns()
        try:
            with _available:
                rows = as_notifications([self._mapper.row(event) for event in recorded])
                positions = self._recorder.insert_events(rows, received=received, documents=documents)
        except IntegrityError as error:
            streams = ", ".join(change.stream for change in changes)
            raise VersionConflict(f"One of the streams {streams} has moved on.") from error
        assert positions is not None
        recorded = [event._replace(position=position) for event, position in zip(recorded, positions, strict=True)]
        tracing.appended(recorded, started)
        return recorded

    def load(self, stream: str, after: int = 0) -> list[Recorded]:
        """Return the events of a stream after version ``after``, in order; none if there is no such stream."""
        with _available:
            return self._mapper.all_recorded(self._recorder.rows_of_stream(stream, after))

    def read(self, after: int, *, limit: int, upto: int | None = None, concealing: bool = False) -> list[Recorded]:
        """Return at most ``limit`` events after position ``after`` up to and including ``upto``, in order of positions.

        ``concealing`` leaves personal data encrypted, and needs no key.
        """
        mapper = self._concealing if concealing else self._mapper
        with _available:
            return mapper.all_recorded(self._recorder.rows(after, limit, upto))

    def of_account(self, account_id: str, upto: int | None = None, page: int = 1000) -> Iterator[Recorded]:
        """Yield every event of an account up to and including ``upto``, read in pages."""
        after = 0
        while True:
            with _available:
                found = self._recorder.rows_of_account(account_id, after, page, upto)
                events = self._mapper.all_recorded(found)
            yield from events
            if len(found) < page:
                return
            after = found[-1].id

    def history(self, upto: int | None = None, page: int = 1000) -> Iterator[Recorded]:
        """Yield every event up to and including ``upto``, read in pages: memory does not grow with the log.

        Each page is prefetched while the one before it is used.
        """
        with ThreadPoolExecutor(1, "log-history") as ahead:
            fetched = ahead.submit(self._recorder.rows, 0, page, upto)
            while True:
                with _available:
                    if not (rows := fetched.result()):
                        return
                    fetched = ahead.submit(self._recorder.rows, rows[-1].id, page, upto)
                    events = self._mapper.all_recorded(rows)
                yield from events

    def position_at(self, moment: datetime) -> int:
        """Return the last position recorded at a time or before; 0 if there is none."""
        with _available:
            return self._recorder.position_at(moment)

    def head(self) -> int:
        """Return the last position; 0 if the log is empty."""
        with _available:
            return self._recorder.max_notification_id() or 0

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait for an event after position ``after``. Returns False on a timeout."""
        return self.notifier.wait(timeout_s, until=lambda: self.head() > after)

    def snapshot(self, stream: str, shape: str) -> Snapshot | None:
        """Return the snapshot of a stream, if it has this shape."""
        with _available:
            found = self._recorder.snapshot(stream)
        return found if found and found.shape == shape else None

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot, replacing an older one of its stream."""
        with _available:
            self._recorder.keep_snapshot(snapshot)

    def handled(self, received: InboxEntry) -> range | None:
        """Return the positions of the events of a message, or None if it was not handled yet.

        Raises:
            MessageIdReused: its id was used by another message.
        """
        with _available:
            return self._recorder.handled(received)

    def document(self, sha256: str) -> StoredDocument | None:
        """Return a stored document by the SHA-256 of its bytes (hexadecimal), or None."""
        with _available:
            return self._recorder.document(sha256)

    def has_key(self, person: str) -> bool:
        """Whether the data of a person in the log can be decrypted."""
        with _available:
            return person in self._recorder.keys.standing([person])

    def destroy_key(self, person: str) -> None:
        """Make the data of a person in the log unreadable, for good. A repetition changes nothing."""
        with _available:
            self._recorder.keys.destroy(person)
