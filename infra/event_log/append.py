"""One append, packed for ``log.append`` by its caller, and its result."""

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

APPEND_BYTES_MAX: Final = 256 * 2**20
"""The largest append. PostgreSQL accepts statements of up to 1 GB."""

_APPEND: Final = Statement(
    b"append", b"SELECT before, outcomes, firsts, lasts FROM log.append($1, $2, $3, $4, $5, $6, $7)", binary=True
)
_TYPES: Final = Statement(
    b"types_of_append",
    b"SELECT 'log.new_event'::regtype::oid, 'log.expected_version'::regtype::oid, 'log.new_message'::regtype::oid, "
    b"'log.new_tracking'::regtype::oid, 'log.new_document'::regtype::oid",
)
_types: WeakKeyDictionary[Connection[Any], tuple[int, int, int, int, int]] = WeakKeyDictionary()
"""The oids of the row types, which differ in each database."""

_NUMBER = struct.Struct(">i").pack

# Rows as log.append takes them: the number of columns, then for each its type, its length and its bytes.
_NEW_EVENT = struct.Struct(">i IiqIiq Ii16s").pack
"""The number of columns (ten), and the fixed-length ones: version, recorded_at, event_id."""
_INT8_COLUMN = struct.Struct(">Iiq").pack
_COMMAND_TO_COME = struct.Struct(">Ii").pack(INT4, 4)

Result = tuple[str, int, int]
"""The result of an append: its outcome, its first position, and the position after its last. If its message was known,
the positions are those of its first handling."""


class Append:
    """What one caller appends, all of it or nothing. It is packed in the thread of the caller.

    Raises:
        IntegrityError: the versions of a stream are not consecutive.
        DataError: the database cannot hold a value.
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
            raise DataError(f"An event has a value that the log cannot hold: {error}") from error
        self.tracking = tracking
        self.size = sum(map(len, self.events)) + (sum(map(len, self.documents)) if documents else 0)
        """In bytes."""
        if self.size > APPEND_BYTES_MAX:
            raise DataError(f"An append has {self.size:,} bytes; it may have at most {APPEND_BYTES_MAX:,}.")
        self.waiter = Waiter()
        self.result: Result | Exception = ("", 0, 0)

    def outcome(self) -> range:
        """Return the positions of its events, once it has ended; raise its error instead if it failed."""
        if isinstance(self.result, Exception):
            raise self.result
        outcome, first, end = self.result
        match outcome:
            case "appended":
                return range(first, end)
            case "known":
                raise AlreadyHandled(range(first, end))
            case "reused":
                assert self.received is not None
                raise self.received.reused()
            case "tracked":
                raise IntegrityError("The tracking has already passed this position.")
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
    """Return a row with its length. Its last column, the number of its command in the group, is appended later."""
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
    """The reply of ``log.append`` to a group: the head before it, and an outcome for each append unless all succeeded.

    For a known message, also the first and the last position of its events.
    """

    before: int
    outcomes: Sequence[str] | None
    firsts: Sequence[int] | None
    lasts: Sequence[int] | None


def appended(conn: Connection[Any], group: Sequence[Append]) -> list[Result]:
    """Append a group in one commit, or in the open transaction. Returns the result of each append.

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
    return _results(group, reply)


def _numbered(rows_of_each: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Return rows completed by the number of their command."""
    return [row + _NUMBER(number) for number, rows in enumerate(rows_of_each, start=1) for row in rows]


def _results(group: Sequence[Append], reply: _Reply) -> list[Result]:
    end = reply.before + 1
    results = []
    for number, append in enumerate(group):
        outcome = reply.outcomes[number] if reply.outcomes else "appended"
        if outcome == "appended":
            first, end = end, end + len(append.rows)
            results.append((outcome, first, end))
        elif outcome == "known":
            assert reply.firsts is not None
            assert reply.lasts is not None
            results.append((outcome, reply.firsts[number], reply.lasts[number] + 1))
        else:
            results.append((outcome, 0, 0))
    return results
