"""The interface of our recorders, in addition to those of the eventsourcing library.

The tools of the library work on all of them: an event without a cause gets one that names the library.
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
"""The actor and correlation id of events that the tools of the library append."""


class MessageIdReused(Refusal):
    """The id of a handled message was used again with another body."""


class AlreadyHandled(Exception):
    """The message was handled before; ``positions`` are those of its events."""

    def __init__(self, positions: range) -> None:
        super().__init__(f"The message was handled before, at positions {list(positions)}.")
        self.positions = positions


class LogRow(NamedTuple):
    """A row of the log without its hash. ``id`` is its position, 0 before it is appended.

    It has the attributes of the library's `Notification`, and replaces it: a replay creates millions, and a tuple costs
    a fifth of a frozen class.
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
        """Return the row of an event; one without a cause gets that of the library."""
        if isinstance(event, LogRow):
            return event._replace(id=position) if position else event
        stream, now = str(event.originator_id), datetime.now(UTC)
        return LogRow(
            stream, event.originator_version, event.topic, event.state, position, now, None, LIBRARY, None, LIBRARY
        )


def as_notifications(rows: Sequence[LogRow]) -> Sequence[Notification]:
    """Cast rows to the type of the library."""
    return cast("Sequence[Notification]", rows)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document whose bytes are stored in the same commit as the events that name it."""

    sha256: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A message that caused an append: its id, and the SHA-256 of its body. Recorded in the same commit."""

    message_id: str
    body_sha256: bytes

    def reused(self) -> MessageIdReused:
        """Return the refusal of an id that was used with another body."""
        return MessageIdReused(
            f"The message id {self.message_id} was used for another message; give each message an id of its own."
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a stream at a version, as JSON; ``shape`` identifies its type and its fold."""

    stream: str
    version: int
    account_id: str | None
    shape: str
    state: bytes


class Recorder(ProcessRecorder, ABC):
    """A recorder of the library that also records an inbox and documents in the commit of the events.

    ``insert_events`` also takes ``received=``, an `InboxEntry`, and ``documents=``, a sequence of `StoredDocument`. It
    raises `AlreadyHandled` or `MessageIdReused` if the inbox has the message. The versions of a stream are consecutive;
    a new one starts with 0 or 1.

    ``keys`` are the keys of personal data; ``notifier`` notifies waiters of new events, whoever appended them.
    """

    keys: PersonKeys
    notifier: Notifier

    @abstractmethod
    def handled(self, received: InboxEntry) -> range | None:
        """Return the positions of the events of a message, or None if it was not handled.

        Raises:
            MessageIdReused: its id was used with another body.
        """

    @abstractmethod
    def snapshot(self, stream: str) -> Snapshot | None:
        """Return the latest snapshot of a stream."""

    @abstractmethod
    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot, replacing an older one of its stream."""

    @abstractmethod
    def document(self, sha256: str) -> StoredDocument | None:
        """Return a document by the SHA-256 of its bytes."""

    @abstractmethod
    def rows_of_stream(self, stream: str, after: int) -> Sequence[LogRow]:
        """Return the rows of a stream after a version, in order."""

    @abstractmethod
    def rows(self, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Return rows after a position up to and including ``stop``, in order."""

    @abstractmethod
    def rows_of_account(self, account_id: str, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Return rows of an account after a position up to and including ``stop``, in order."""

    @abstractmethod
    def position_at(self, moment: datetime) -> int:
        """Return the last position recorded at a time or before; 0 if there is none."""


def expected_versions(events: Sequence[StoredEvent | LogRow]) -> dict[str, int]:
    """Return the version that each stream must have before these events.

    Raises:
        IntegrityError: their versions have a gap or a duplicate.
    """
    expected: dict[str, int] = {}
    last: dict[str, int] = {}
    for event in events:
        stream, version = str(event.originator_id), event.originator_version
        expected.setdefault(stream, version - 1)
        if last.get(stream, version - 1) != version - 1:
            raise IntegrityError(f"The versions of the new events of {stream} are not consecutive.")
        last[stream] = version
    return expected
