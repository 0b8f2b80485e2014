"""What the log asks of a recorder, beyond the eventsourcing library's interfaces; and a recorder in memory.

The library's tools work on any recorder of ours: an event that comes without a record of who caused it gets one that
says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha1
from typing import Any, NamedTuple, cast
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.persistence import IntegrityError, Notification, ProcessRecorder, StoredEvent
from eventsourcing.popo import POPOProcessRecorder

from domain.messages import Refusal
from infra.event_log.notifications import News
from infra.personal_data.person_keys import MemoryPersonKeys, PersonKeys

_EVENT_IDS = sha1(uuid5(NAMESPACE_URL, "urn:trunkline:event").bytes, usedforsecurity=False)
_VERSION_5 = 0x5 << 76 | 0b10 << 62
_OTHER_BITS = ~(0xF << 76 | 0b11 << 62)
LIBRARY = "system:eventsourcing"
"""The actor, and the correlation id, of events that the library's own tools append."""


class MessageIdReused(Refusal):
    """The id of a message that was dealt with came again, with another body."""


class AlreadyHandled(Exception):
    """The message was dealt with before; ``positions`` are those of the events that it led to then."""

    def __init__(self, positions: range) -> None:
        super().__init__(f"The message was dealt with before, at positions {list(positions)}.")
        self.positions = positions


def event_id_bytes(stream: str, version: int) -> bytes:
    """The id of the event at a place of a stream, a UUID of version 5 (RFC 9562): the same wherever it is asked for."""
    hashed = _EVENT_IDS.copy()
    hashed.update(f"{stream}/{version}".encode())
    return (int.from_bytes(hashed.digest()[:16]) & _OTHER_BITS | _VERSION_5).to_bytes(16)


def event_id(stream: str, version: int) -> UUID:
    """The same, as a UUID. To make the object takes three times as long as to make the id."""
    return UUID(bytes=event_id_bytes(stream, version))


class LogRow(NamedTuple):
    """A row of the log, less its hash. ``id`` is its position; 0 where it has none yet.

    It has the attributes of the library's `Notification`, and stands wherever that does; a replay makes millions, and a
    tuple costs a fifth of a frozen class.
    """

    originator_id: str
    originator_version: int
    topic: str
    state: bytes
    id: int
    recorded_at: datetime
    account_id: str | None
    correlation_id: str
    causation_id: str | None
    actor: str

    @classmethod
    def of_stored(cls, event: StoredEvent | LogRow, position: int = 0) -> LogRow:
        """The row of an event; where it comes without a record, with one that says so."""
        if isinstance(event, LogRow):
            return event._replace(id=position) if position else event
        stream, now = str(event.originator_id), datetime.now(UTC)
        return LogRow(
            stream, event.originator_version, event.topic, event.state, position, now, None, LIBRARY, None, LIBRARY
        )


def as_notifications(rows: Sequence[LogRow]) -> Sequence[Notification]:
    """Rows by the library's name for them."""
    return cast("Sequence[Notification]", rows)


@dataclass(frozen=True, slots=True)
class Kept:
    """A document whose bytes are to be kept in the same commit as the events that name it."""

    sha256: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A message that led to an append: its id, and the SHA-256 of its body. Written to the inbox in the same commit."""

    message_id: str
    body_sha256: bytes

    def reused(self) -> MessageIdReused:
        """The refusal where the inbox has this id with another body."""
        return MessageIdReused(
            f"The message id {self.message_id} was used before, for another message; give each message its own."
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a stream at a version, as JSON; ``shape`` names the type and the fold that it came of."""

    stream: str
    version: int
    account_id: str | None
    shape: str
    state: bytes


class Recorder(ProcessRecorder, ABC):
    """A recorder of the library that keeps an inbox, and documents, in the commit of the events.

    ``insert_events`` also takes ``received=``, a `Received`, and ``documents=``, a sequence of `Kept`. It raises
    `AlreadyHandled` or `MessageIdReused` where the inbox knows the message. Each stream has to go on from its last
    version; a new one begins with 0 or 1.

    ``keys`` are those of the personal data that its events hold; ``news`` tells of what anybody appends.
    """

    keys: PersonKeys
    news: News

    @abstractmethod
    def handled(self, received: Received) -> range | None:
        """The positions of what a message led to; none where it was not dealt with.

        Raises:
            MessageIdReused: it was, with another body.
        """

    @abstractmethod
    def snapshot(self, stream: str) -> Snapshot | None:
        """The latest snapshot of a stream."""

    @abstractmethod
    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in the place of an older one of its stream."""

    @abstractmethod
    def document(self, sha256: str) -> Kept | None:
        """A document by the SHA-256 of its bytes."""

    @abstractmethod
    def rows_of_stream(self, stream: str, after: int) -> Sequence[LogRow]:
        """The rows of a stream behind a version, in the order of versions."""

    @abstractmethod
    def rows(self, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Rows behind a position, up to and with ``stop``, in the order of positions."""

    @abstractmethod
    def rows_of_account(self, account_id: str, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Rows of an account behind a position, up to and with ``stop``, in the order of positions."""

    @abstractmethod
    def position_at(self, moment: datetime) -> int:
        """The position of the last event that was recorded up to a moment; 0 where there is none."""


def expected_versions(events: Sequence[StoredEvent | LogRow]) -> dict[str, int]:
    """The version that each stream has to be at for these events to follow.

    Raises:
        IntegrityError: they have a gap, or a version twice.
    """
    expected: dict[str, int] = {}
    last: dict[str, int] = {}
    for event in events:
        stream, version = str(event.originator_id), event.originator_version
        expected.setdefault(stream, version - 1)
        if last.get(stream, version - 1) != version - 1:
            raise IntegrityError(f"The new events of {stream} do not follow one another.")
        last[stream] = version
    return expected


class MemoryRecorder(POPOProcessRecorder, Recorder):
    """The log in this process's memory: for tests, and for runs that leave nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = MemoryPersonKeys()
        self.news = News()
        self._documents: dict[str, Kept] = {}
        self._inbox: dict[str, tuple[Received, range]] = {}
        self._snapshots: dict[str, Snapshot] = {}

    def _assert_uniqueness(
        self,
        stored_events: Sequence[StoredEvent],
        received: Received | None = None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> None:
        if received is not None and (positions := self.handled(received)) is not None:
            raise AlreadyHandled(positions)
        for stream, version in expected_versions(stored_events).items():
            if version != max(self._stored_events_index.get(stream, ()), default=min(version, 0)):
                raise IntegrityError(f"{stream} is not at version {version}.")
        super()._assert_uniqueness(stored_events, **kwargs)

    def _update_table(
        self,
        stored_events: Sequence[StoredEvent],
        received: Received | None = None,
        documents: Sequence[Kept] = (),
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Sequence[int] | None:
        first = len(self._stored_events) + 1
        rows = [LogRow.of_stored(event, position) for position, event in enumerate(stored_events, start=first)]
        positions = super()._update_table(as_notifications(rows), **kwargs)
        self._documents.update({document.sha256: document for document in documents})
        if received is not None:
            self._inbox[received.message_id] = (received, range(first, first + len(rows)))
        self.news.tell()
        return positions

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """See the library's interface."""
        after = 0 if start is None else start - inclusive_of_start
        return as_notifications(self._selected(after, limit, stop, lambda row: not topics or row.topic in topics))

    def rows(self, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Rows behind a position."""
        return self._selected(after, limit, stop, lambda _: True)

    def rows_of_account(self, account_id: str, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Rows of an account behind a position."""
        return self._selected(after, limit, stop, lambda row: row.account_id == account_id)

    def position_at(self, moment: datetime) -> int:
        """The last position up to a moment."""
        return max((row.id for row in self._selected(0, 2**62, None, lambda row: row.recorded_at <= moment)), default=0)

    def rows_of_stream(self, stream: str, after: int) -> Sequence[LogRow]:
        """The rows of a stream behind a version."""
        return cast("Sequence[LogRow]", self.select_events(stream, gt=after))

    def _selected(self, after: int, limit: int, stop: int | None, wanted: Callable[[LogRow], bool]) -> list[LogRow]:
        with self._database_lock:
            some = cast("list[LogRow]", self._stored_events[max(after, 0) : stop])
        return [row for row in some if wanted(row)][:limit]

    def handled(self, received: Received) -> range | None:
        """The positions of what a message led to."""
        found, positions = self._inbox.get(received.message_id, (received, None))
        if found != received:
            raise received.reused()
        return positions

    def snapshot(self, stream: str) -> Snapshot | None:
        """The latest snapshot of a stream."""
        return self._snapshots.get(stream)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        self._snapshots[snapshot.stream] = snapshot

    def document(self, sha256: str) -> Kept | None:
        """A document by the SHA-256 of its bytes."""
        return self._documents.get(sha256)
