"""What callers append, packed for ``log.append`` (migration 0010), and what the database says of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from eventsourcing.persistence import DataError, IntegrityError, StoredEvent, Tracking
from psycopg import Connection

from infra.event_log.fair_wakeup import Waiter
from infra.event_log.recorder import AlreadyHandled, InboxEntry, LogRow, StoredDocument, expected_versions
from infra.postgres.binary_format import (
    INT4,
    INT8,
    TIMESTAMPTZ,
    UUID,
    array,
    bytes_column,
    microseconds,
    name_column,
    packed_bytes,
    packed_int4,
    text_column,
)
from infra.postgres.prepared import Statement, ask
from infra.recorded import event_id_bytes

MOST_BYTES: Final = 256 * 2**20
"""So much can be appended at once; PostgreSQL takes no statement of more than 1 GB."""

_APPEND: Final = Statement(
    b"append", b"SELECT before, outcomes, firsts, lasts FROM log.append($1, $2, $3, $4, $5, $6, $7)", binary=True
)
_TYPES: Final = Statement(
    b"types_of_append",
    b"SELECT 'log.new_event'::regtype::oid, 'log.expected_version'::regtype::oid, 'log.new_message'::regtype::oid, "
    b"'log.new_tracking'::regtype::oid, 'log.new_document'::regtype::oid",
)
_types: WeakKeyDictionary[Connection[Any], tuple[int, int, int, int, int]] = WeakKeyDictionary()
"""The numbers of the types of its rows, which are others in each database."""

_NUMBER = struct.Struct(">i").pack

# Rows as log.append takes them: the number of columns, then the columns, each behind its type and its length.
_NEW_EVENT = struct.Struct(">i IiqIiq Ii16s").pack
"""The ten columns' number, and those that have a fixed length: version, recorded_at, event_id."""
_INT8_COLUMN = struct.Struct(">Iiq").pack
_COMMAND_TO_COME = struct.Struct(">Ii").pack(INT4, 4)

Said = tuple[str, int, int]
"""What the database says of an append: its outcome; its first position, and the one behind its last (those of then,
where its message was known)."""


class Append:
    """What one caller wants to be there, all of it or nothing; packed in the caller's thread.

    Raises:
        IntegrityError: the events of a stream do not follow one another.
        DataError: a value is one that the database cannot hold.
    """

    def __init__(
        self,
        events: Sequence[StoredEvent | LogRow],
        received: InboxEntry | None = None,
        documents: Sequence[StoredDocument] = (),
        tracking: Tracking | None = None,
    ) -> None:
        self.rows = [LogRow.of_stored(event) for event in events]
        self.received = received
        self.expected = expected_versions(self.rows)
        self.keys = {*self.expected}
        if received is not None:
            self.keys.add(f"message {received.message_id}")
        if tracking is not None:
            self.keys.add(f"tracking {tracking.application_name}")
        try:
            self.events = [_packed_event(row) for row in self.rows]
            self.versions = [_packed_expected(*each) for each in self.expected.items() if each[1]]
            self.messages = [] if received is None else [_packed_message(received)]
            self.trackings = [] if tracking is None else [_packed_tracking(tracking)]
            self.documents = [_packed_document(document) for document in documents]
        except (UnicodeEncodeError, struct.error) as error:
            raise DataError(f"An event holds what the log cannot: {error}") from error
        self.tracking = tracking
        self.size = sum(map(len, self.events)) + (sum(map(len, self.documents)) if documents else 0)
        """In bytes."""
        if self.size > MOST_BYTES:
            raise DataError(f"What is to be appended at once has {self.size:,} bytes; {MOST_BYTES:,} are possible.")
        self.waiter = Waiter()
        self.said: Said | Exception = ("", 0, 0)

    def outcome(self) -> range:
        """The positions of its events, once it has ended; raises what became of it instead."""
        if isinstance(self.said, Exception):
            raise self.said
        outcome, first, end = self.said
        match outcome:
            case "appended":
                return range(first, end)
            case "known":
                raise AlreadyHandled(range(first, end))
            case "reused":
                assert self.received is not None
                raise self.received.reused()
            case "tracked":
                raise IntegrityError("The tracking has come further than this already.")
            case _:
                raise IntegrityError(f"One of the streams {', '.join(self.expected)} has moved on.")


def _packed_event(row: LogRow) -> bytes:
    stream, version = row.originator_id, row.originator_version
    recorded_at, event_id = microseconds(row.recorded_at), event_id_bytes(stream, version)
    columns = (
        _NEW_EVENT(10, INT8, 8, version, TIMESTAMPTZ, 8, recorded_at, UUID, 16, event_id),
        text_column(stream),
        name_column(row.topic),
        bytes_column(row.state),
        name_column(row.account_id),
        text_column(row.correlation_id),
        text_column(row.causation_id),
        name_column(row.actor),
    )
    return packed_bytes(b"".join(columns))


def _without_command(*columns: bytes) -> bytes:
    """A row, behind its length, whose last column is the number of its command in the group: that comes last."""
    row = _NUMBER(len(columns) + 1) + b"".join(columns) + _COMMAND_TO_COME
    return _NUMBER(len(row) + 4) + row


def _packed_expected(stream: str, version: int) -> bytes:
    return _without_command(text_column(stream), _INT8_COLUMN(INT8, 8, version))


def _packed_message(received: InboxEntry) -> bytes:
    return _without_command(text_column(received.message_id), bytes_column(received.body_sha256))


def _packed_tracking(tracking: Tracking) -> bytes:
    return _without_command(text_column(tracking.application_name), _INT8_COLUMN(INT8, 8, tracking.notification_id))


def _packed_document(document: StoredDocument) -> bytes:
    return _without_command(
        text_column(document.sha256), name_column(document.media_type), bytes_column(document.content)
    )


class _Reply(NamedTuple):
    """What ``log.append`` says of a group: the head before it, and for each append its outcome, unless all are there.

    Where a message was known, the first and the last position of what it had led to.
    """

    before: int
    outcomes: Sequence[str] | None
    firsts: Sequence[int] | None
    lasts: Sequence[int] | None


def appended(conn: Connection[Any], group: Sequence[Append]) -> list[Said]:
    """Append a group in one commit, or in the transaction that is open. Says what became of each.

    Raises:
        psycopg.Error: as a cursor does.
    """
    if conn not in _types:
        (_types[conn],) = ask(conn, _TYPES, (), tuple)
    event, version, message, tracking, document = _types[conn]
    of_command = [packed_int4(number) for number, append in enumerate(group, start=1) for _ in append.events]
    parameters = (
        _NUMBER(len(group)),
        array(INT4, of_command),
        array(event, [row for append in group for row in append.events]),
        array(version, _numbered(append.versions for append in group)),
        array(message, _numbered(append.messages for append in group)),
        array(tracking, _numbered(append.trackings for append in group)),
        array(document, _numbered(append.documents for append in group)),
    )
    (reply,) = ask(conn, _APPEND, parameters, _Reply._make)
    return _said(group, reply)


def _numbered(rows_of_each: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Rows that came without their command, with its number."""
    return [row + _NUMBER(number) for number, rows in enumerate(rows_of_each, start=1) for row in rows]


def _said(group: Sequence[Append], reply: _Reply) -> list[Said]:
    end = reply.before + 1
    of_each = []
    for number, append in enumerate(group):
        outcome = reply.outcomes[number] if reply.outcomes else "appended"
        if outcome == "appended":
            first, end = end, end + len(append.rows)
            of_each.append((outcome, first, end))
        elif outcome == "known":
            assert reply.firsts is not None
            assert reply.lasts is not None
            of_each.append((outcome, reply.firsts[number], reply.lasts[number] + 1))
        else:
            of_each.append((outcome, 0, 0))
    return of_each
