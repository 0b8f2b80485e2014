"""What the log asks of a recorder, beyond the eventsourcing library's interfaces.

The library's tools work on any recorder of ours: an event that comes without a record of who caused it gets one that
says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, cast

from eventsourcing.persistence import IntegrityError, Notification, ProcessRecorder, StoredEvent

from domain.messages import Refusal
from infra.event_log.notifications import Notifier
from infra.personal_data.person_keys import PersonKeys

LIBRARY = "system:eventsourcing"
"""The actor, and the correlation id, of events that the library's own tools append."""


class MessageIdReused(Refusal):
    """The id of a message that was dealt with came again, with another body."""


class AlreadyHandled(Exception):
    """The message was dealt with before; ``positions`` are those of the events that it led to then."""

    def __init__(self, positions: range) -> None:
        super().__init__(f"The message was dealt with before, at positions {list(positions)}.")
        self.positions = positions


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
class StoredDocument:
    """A document whose bytes are to be kept in the same commit as the events that name it."""

    sha256: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class InboxEntry:
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

    ``insert_events`` also takes ``received=``, an `InboxEntry`, and ``documents=``, a sequence of `StoredDocument`. It
    raises `AlreadyHandled` or `MessageIdReused` if the inbox knows the message. Each stream has to go on from its last
    version; a new one begins with 0 or 1.

    ``keys`` are those of the personal data that its events hold; ``news`` tells of what anybody appends.
    """

    keys: PersonKeys
    news: Notifier

    @abstractmethod
    def handled(self, received: InboxEntry) -> range | None:
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
    def document(self, sha256: str) -> StoredDocument | None:
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
