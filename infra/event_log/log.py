"""The event log: append to several streams in one commit, load a stream, read on from a position, wait for news.

It stands on a recorder and a mapper behind the eventsourcing library's interfaces: on PostgreSQL
(`infra.event_log.postgres_recorder`) or memory. Nothing above `infra` knows the library.
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
    """A stream has moved on since it was loaded; load it again, and decide again."""


class LogUnavailable(Exception):
    """The log's database did not answer, however often it was asked. What was to be appended may stand there."""


class _Available:
    """Says `LogUnavailable` where the database does not answer."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OperationalError):
            raise LogUnavailable(f"The log does not answer: {' '.join(str(error).split())}") from error


_available = _Available()
"""A generator's context would take as long as all else that `Log` does to append."""


@dataclass(frozen=True, slots=True)
class Change:
    """New events of one stream, to follow its ``expected_version`` (0 where the stream is new)."""

    stream: str
    expected_version: int
    events: Sequence[Event]


class Log:
    """What the rest of the program knows of the log."""

    def __init__(self, recorder: Recorder) -> None:
        self.recent = StateCache()
        self._recorder = recorder
        self._mapper = PydanticMapper(recorder.keys)
        self._concealing = PydanticMapper(None)

    @property
    def news(self) -> Notifier:
        """Tells that something was appended."""
        return self._recorder.news

    def decoded(self, row: LogRow) -> Recorded:
        """The event of a row that somebody read for himself, in a transaction of his own. Personal data stay sealed.

        Raises:
            UnreadableEvent: names its place and what is wrong.
        """
        return self._concealing.recorded(row)

    def encoded(self, recorded: Recorded) -> LogRow:
        """The row of an event."""
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
        """Write all changes, keep all documents, and note the message they follow from, in one commit, or nothing.

        Raises:
            VersionConflict: one of the streams is not at its expected version.
            AlreadyHandled, MessageIdReused: the message was dealt with before, or another one with its id was.
            LogUnavailable: as do all methods here, where the database does not answer.
        """
        recorded = [
            Recorded(change.stream, change.expected_version + n, event, account_id, cause, at)
            for change in changes
            for n, event in enumerate(change.events, start=1)
        ]
        if not recorded and received is None:
            return []
        begun = time.time_ns()
        try:
            with _available:
                rows = as_notifications([self._mapper.row(event) for event in recorded])
                positions = self._recorder.insert_events(rows, received=received, documents=documents)
        except IntegrityError as error:
            streams = ", ".join(change.stream for change in changes)
            raise VersionConflict(f"One of the streams {streams} has moved on.") from error
        assert positions is not None
        recorded = [event._replace(position=position) for event, position in zip(recorded, positions, strict=True)]
        tracing.appended(recorded, begun)
        return recorded

    def load(self, stream: str, after: int = 0) -> list[Recorded]:
        """The events of a stream behind version ``after``, first to last; none where there is no such stream."""
        with _available:
            return self._mapper.all_recorded(self._recorder.rows_of_stream(stream, after))

    def read(self, after: int, *, limit: int, upto: int | None = None, concealing: bool = False) -> list[Recorded]:
        """At most ``limit`` events behind position ``after``, up to and with ``upto``, in the order of positions.

        ``concealing`` leaves personal data sealed, for who has no use for them: no key is asked for.
        """
        mapper = self._concealing if concealing else self._mapper
        with _available:
            return mapper.all_recorded(self._recorder.rows(after, limit, upto))

    def of_account(self, account_id: str, upto: int | None = None, page: int = 1000) -> Iterator[Recorded]:
        """Every event of an account, up to and with ``upto``, page by page."""
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
        """Every event, up to and with ``upto``, page by page: memory stays flat in the length of the log.

        A page is fetched while the one before it is decoded and used.
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
        """The position of the last event that was recorded up to a moment; 0 where there is none."""
        with _available:
            return self._recorder.position_at(moment)

    def head(self) -> int:
        """The position of the last event; 0 where there is none."""
        with _available:
            return self._recorder.max_notification_id() or 0

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until there is an event behind ``after``; false where none came in time."""
        return self.news.wait(timeout_s, until=lambda: self.head() > after)

    def snapshot(self, stream: str, shape: str) -> Snapshot | None:
        """The snapshot of a stream, where there is one of this shape."""
        with _available:
            found = self._recorder.snapshot(stream)
        return found if found and found.shape == shape else None

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in the place of an older one of its stream."""
        with _available:
            self._recorder.keep_snapshot(snapshot)

    def handled(self, received: InboxEntry) -> range | None:
        """The positions of the events that a message led to; none where it was not dealt with yet.

        Raises:
            MessageIdReused: another message with its id was.
        """
        with _available:
            return self._recorder.handled(received)

    def document(self, sha256: str) -> StoredDocument | None:
        """A kept document by the SHA-256 of its bytes (hexadecimal)."""
        with _available:
            return self._recorder.document(sha256)

    def has_key(self, person: str) -> bool:
        """Whether what the log holds of a person can be read."""
        with _available:
            return person in self._recorder.keys.standing([person])

    def destroy_key(self, person: str) -> None:
        """Make what the log holds of a person unreadable, for good; nothing where it was before."""
        with _available:
            self._recorder.keys.destroy(person)
