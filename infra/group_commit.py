"""Group commit: whoever appends at the same time shares one statement, one commit and one flush to the disk.

While a group is on its way, the next one gathers; so groups are as large as the load makes them, and an append alone
waits for nobody. A stale append fails alone. When the connection breaks in the middle, the group is sent once more, and
what the first attempt had written is recognised: by the inbox, or by the rows themselves.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

import psycopg
from eventsourcing.persistence import DataError, IntegrityError, OperationalError, StoredEvent, Tracking
from psycopg import Connection

from infra.metrics import APPENDED, APPENDS, GROUP
from infra.packed_arrays import (
    ByteaArray,
    Int4Array,
    Int8Array,
    PackedArray,
    TextArray,
    TimestampArray,
    UuidArray,
    packed_bytes,
    packed_int4,
    packed_int8,
    packed_moment,
    packed_text,
    take_packed_arrays,
)
from infra.recorder import AlreadyHandled, Kept, LogRow, Received, event_id, expected_versions

MAX_GROUP: Final = 256
"""How many appends share a commit at most: more gain nothing, and all of them wait for the last."""

_RECORD = (
    TimestampArray, TextArray, TextArray, TextArray, TextArray,  # recorded_at, account, correlation, causation, actor
    TextArray, ByteaArray, TextArray, Int8Array,  # message_id, body_sha256, application_name, notification_id
)  # fmt: skip
_STREAM = (TextArray, Int8Array)  # stream, the version that is expected of it
_EVENT = (TextArray, Int8Array, TextArray, ByteaArray, UuidArray)  # stream, version, topic, state, event_id
_DOCUMENT = (TextArray, TextArray, ByteaArray)  # sha256, media_type, content
_APPEND = b"SELECT * FROM log.append(" + b", ".join([b"%b"] * 22) + b")"
_STANDING = b"""
    SELECT position, stream, version, topic, state, correlation_id, causation_id, actor
      FROM log.events WHERE stream = %b AND version = %b
"""
logger = logging.getLogger(__name__)

Packed = tuple[bytes, ...]


def _columns(rows: Sequence[Packed], width: int) -> Packed:
    """Rows of packed elements, column by column."""
    return tuple(map(b"".join, zip(*rows, strict=True))) if rows else (b"",) * width


class Append:
    """What one caller wants to be there, all of it or nothing; packed in the caller's thread.

    Raises:
        IntegrityError: the events of a stream do not follow one another.
        DataError: a value is one that the database cannot hold.
    """

    def __init__(
        self,
        events: Sequence[StoredEvent],
        received: Received | None = None,
        documents: Sequence[Kept] = (),
        tracking: Tracking | None = None,
    ) -> None:
        self.rows = [LogRow.of_stored(event) for event in events]
        self.received = received
        self.expected = expected_versions(events)
        self.keys = {*self.expected}
        if received is not None:
            self.keys.add(f"message {received.message_id}")
        if tracking is not None:
            self.keys.add(f"tracking {tracking.application_name}")
        try:
            self._pack(documents, tracking)
        except (UnicodeEncodeError, struct.error) as error:
            raise DataError(f"An event holds what the log cannot: {error}") from error
        self.done = threading.Lock()
        self.done.acquire()
        self.positions = range(0)
        self.error: Exception | None = None

    def _pack(self, documents: Sequence[Kept], tracking: Tracking | None) -> None:
        record = self.rows[0] if self.rows else LogRow.of_stored(StoredEvent("", 0, "", b""))
        received, name, number = self.received, None, None
        if tracking is not None:
            name, number = tracking.application_name, tracking.notification_id
        self.record = (
            packed_moment(record.recorded_at),
            packed_text(record.account_id),
            packed_text(record.correlation_id),
            packed_text(record.causation_id),
            packed_text(record.actor),
            packed_text(received.message_id if received else None),
            packed_bytes(received.body_sha256 if received else None),
            packed_text(name),
            packed_int8(number),
        )
        streams = [(packed_text(stream), packed_int8(version)) for stream, version in self.expected.items()]
        self.streams = _columns(streams, len(_STREAM))
        self.events = _columns([_packed_event(row) for row in self.rows], len(_EVENT))
        kept = [(packed_text(d.sha256), packed_text(d.media_type), packed_bytes(d.content)) for d in documents]
        self.documents = _columns(kept, len(_DOCUMENT))
        self.counts = (len(streams), len(self.rows), len(kept))

    def ended(self, positions: range, error: Exception | None = None) -> None:
        """Say what became of it, and wake whoever waits."""
        self.positions = positions
        self.error = error
        self.done.release()


def _packed_event(row: LogRow) -> Packed:
    stream = str(row.originator_id)
    return (
        packed_text(stream),
        packed_int8(row.originator_version),
        packed_text(row.topic),
        packed_bytes(row.state),
        packed_bytes(event_id(stream, row.originator_version).bytes),
    )


def _arrays(kinds: Sequence[type[PackedArray]], count: int, columns: Sequence[Sequence[bytes]]) -> list[PackedArray]:
    return [kind(count, packed) for kind, packed in zip(kinds, columns, strict=True)]


def _parameters(group: Sequence[Append]) -> list[PackedArray]:
    """The parameters of ``log.append`` for a group."""
    parameters = _arrays(_RECORD, len(group), list(zip(*(append.record for append in group), strict=True)))
    for n, kinds, columns in (
        (0, _STREAM, [append.streams for append in group]),
        (1, _EVENT, [append.events for append in group]),
        (2, _DOCUMENT, [append.documents for append in group]),
    ):
        count = sum(append.counts[n] for append in group)
        whose = [packed_int4(number) * append.counts[n] for number, append in enumerate(group, start=1)]
        parameters.append(Int4Array(count, whose))
        parameters += _arrays(kinds, count, list(zip(*columns, strict=True)))
    return parameters


@dataclass
class GroupCommit:
    """A thread that writes what others want to append, on a connection of its own.

    Args:
        connect: makes a connection, in autocommit, as the role that may append.
    """

    connect: Callable[[], Connection[Any]]
    _asked: SimpleQueue[Append | None] = field(default_factory=SimpleQueue)
    _conn: Connection[Any] | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._write_on, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, append: Append) -> range:
        """Wait until it is written, durably. Gives the positions of its events.

        Raises:
            IntegrityError: a stream is not at its expected version, or the tracking has come further than this.
            AlreadyHandled, MessageIdReused: see `infra.recorder.Recorder`.
            OperationalError: the database does not answer; what was to be appended may stand there.
        """
        if self._closed:
            raise OperationalError("The log was closed.")
        self._asked.put(append)
        append.done.acquire()
        if append.error is not None:
            raise append.error
        return append.positions

    def close(self) -> None:
        """End, after what was asked before."""
        self._closed = True
        self._asked.put(None)
        self._thread.join()
        if self._conn is not None:
            self._conn.close()

    def _write_on(self) -> None:
        waiting: list[Append] = []
        while True:
            if not waiting:
                if (asked := self._asked.get()) is None:
                    return
                waiting.append(asked)
            closing = self._gather(waiting)
            group, waiting = _compatible(waiting)
            self._write(group)
            if closing:
                self._asked.put(None)

    def _gather(self, waiting: list[Append]) -> bool:
        """Add what was asked meanwhile; true where that was the end."""
        try:
            while len(waiting) < MAX_GROUP:
                if (asked := self._asked.get_nowait()) is None:
                    return True
                waiting.append(asked)
        except Empty:
            pass
        return False

    def _write(self, group: Sequence[Append]) -> None:
        """Write a group. Whatever happens, each of its appends is ended."""
        try:
            outcomes = self._sent(group)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(group) > 1:  # one of them holds what the database does not take: that one fails, and no other
                for append in group:
                    self._write([append])
            else:
                group[0].ended(range(0), DataError(str(error)))
        except Exception as error:  # noqa: BLE001 - each of the callers raises it
            for append in group:
                append.ended(range(0), OperationalError(f"{type(error).__name__}: {error}"))
        else:
            GROUP.observe(len(group))
            APPENDS.inc(sum(1 for _, failed in outcomes if failed is None))
            APPENDED.inc(sum(len(positions) for positions, failed in outcomes if failed is None))
            for append, (positions, failed) in zip(group, outcomes, strict=True):
                append.ended(positions, failed)

    def _sent(self, group: Sequence[Append]) -> list[tuple[range, Exception | None]]:
        """The outcomes of a group, sent a second time where the connection broke before the answer came."""
        parameters = _parameters(group)
        try:
            return [_outcome(append, *said) for append, said in zip(group, self._said(parameters), strict=True)]
        except psycopg.OperationalError:
            if self._conn is not None and not self._conn.broken:
                raise  # it was answered: nothing was written
            logger.warning("the line broke while %s appends were on their way; they are sent again", len(group))
            said_again = self._said(parameters)
            return [self._recognised(append, *said) for append, said in zip(group, said_again, strict=True)]

    def _said(self, parameters: Sequence[PackedArray]) -> list[tuple[str, int, int]]:
        if self._conn is None or self._conn.closed:
            self._conn = self.connect()
            take_packed_arrays(self._conn)
        found = self._conn.execute(_APPEND, parameters, prepare=True, binary=True).fetchone()
        assert found is not None
        return list(zip(found["outcomes"], found["firsts"], found["counts"], strict=True))

    def _recognised(self, append: Append, outcome: str, first: int, count: int) -> tuple[range, Exception | None]:
        """What became of an append that was sent twice: the first time may have succeeded, and been lost on the way.

        The inbox says so itself; where there was no message, the rows do.
        """
        if outcome == "stale" and (position := self._standing(append)):
            return range(position, position + len(append.rows)), None
        return _outcome(append, outcome, first, count)

    def _standing(self, append: Append) -> int | None:
        """The position of an append's first event, where what stands at its place is that very event."""
        row = append.rows[0]
        assert self._conn is not None
        found = self._conn.execute(_STANDING, (row.originator_id, row.originator_version)).fetchone()
        columns = ("topic", "state", "correlation_id", "causation_id", "actor")
        if found is None or any(found[column] != getattr(row, column) for column in columns):
            return None
        return int(found["position"])


def _compatible(waiting: Sequence[Append]) -> tuple[list[Append], list[Append]]:
    """Those that can share a group, in their order; and the others, who come after them."""
    taken: set[str] = set()
    group: list[Append] = []
    later: list[Append] = []
    for append in waiting:
        (group if taken.isdisjoint(append.keys) else later).append(append)
        taken |= append.keys  # also of those who wait, so that nobody overtakes on a stream
    return group, later


def _outcome(append: Append, outcome: str, first: int, count: int) -> tuple[range, Exception | None]:
    positions = range(first, first + count)
    match outcome:
        case "appended":
            return positions, None
        case "known":
            return positions, AlreadyHandled(positions)
        case "reused":
            assert append.received is not None
            return positions, append.received.reused()
        case "tracked":
            return positions, IntegrityError("The tracking has come further than this already.")
        case _:
            return positions, IntegrityError(f"One of the streams {', '.join(append.expected)} has moved on.")
