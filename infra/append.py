"""One caller's append, packed for ``log.append`` (migration 0001), and what the database says of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from eventsourcing.persistence import DataError, IntegrityError, StoredEvent, Tracking

from infra.packed_arrays import (
    BYTEAS,
    INT4S,
    INT8S,
    TEXTS,
    TIMESTAMPS,
    UUIDS,
    ArrayOf,
    packed_bytes,
    packed_int4,
    packed_int8,
    packed_moment,
    packed_text,
)
from infra.prepared import Statement
from infra.recorder import AlreadyHandled, Kept, LogRow, Received, event_id_bytes, expected_versions
from infra.turns import Waiter

_RECORD = (
    TIMESTAMPS, TEXTS, TEXTS, TEXTS, TEXTS,  # recorded_at, account, correlation, causation, actor
    TEXTS, BYTEAS, TEXTS, INT8S,  # message_id, body_sha256, application_name, notification_id
)  # fmt: skip
_STREAM = (TEXTS, INT8S)  # stream, the version that is expected of it
_EVENT = (TEXTS, INT8S, TEXTS, BYTEAS, UUIDS)  # stream, version, topic, state, event_id
_DOCUMENT = (TEXTS, TEXTS, BYTEAS)  # sha256, media_type, content
_PARAMETERS: Final = ", ".join(f"${n}" for n in range(1, 23))
_REPLY: Final = "before, outcomes, firsts, lasts"
APPEND: Final = Statement(b"append", f"SELECT {_REPLY} FROM log.append({_PARAMETERS})".encode(), binary=True)  # noqa: S608 - constants of ours

_packed_name = lru_cache(4096)(packed_text)
"""For texts that come again and again: topics, actors, accounts."""

Packed = tuple[bytes, ...]


def _columns(rows: Sequence[Packed], width: int) -> Packed:
    """Rows of packed elements, column by column."""
    if len(rows) == 1:
        return rows[0]
    return tuple(map(b"".join, zip(*rows, strict=True))) if rows else (b"",) * width


class Append:
    """What one caller wants to be there, all of it or nothing; packed in the caller's thread.

    Raises:
        IntegrityError: the events of a stream do not follow one another.
        DataError: a value is one that the database cannot hold.
    """

    def __init__(
        self,
        events: Sequence[StoredEvent | LogRow],
        received: Received | None = None,
        documents: Sequence[Kept] = (),
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
            self._pack(documents, tracking)
        except (UnicodeEncodeError, struct.error) as error:
            raise DataError(f"An event holds what the log cannot: {error}") from error
        self.waiter = Waiter()
        self.positions = range(0)
        self.error: Exception | None = None

    def _pack(self, documents: Sequence[Kept], tracking: Tracking | None) -> None:
        record = self.rows[0] if self.rows else LogRow.of_stored(StoredEvent("", 0, "", b""))
        self.record = (
            packed_moment(record.recorded_at),
            _packed_name(record.account_id),
            packed_text(record.correlation_id),
            packed_text(record.causation_id),
            _packed_name(record.actor),
            *_packed_message(self.received),
            *_packed_tracking(tracking),
        )
        names = {stream: packed_text(stream) for stream in self.expected}
        streams = [(names[stream], packed_int8(version)) for stream, version in self.expected.items()]
        self.streams = _columns(streams, len(_STREAM))
        self.events = _columns([_packed_event(row, names[row.originator_id]) for row in self.rows], len(_EVENT))
        kept = [(packed_text(d.sha256), packed_text(d.media_type), packed_bytes(d.content)) for d in documents]
        self.documents = _columns(kept, len(_DOCUMENT))
        self.counts = (len(streams), len(self.rows), len(kept))

    def outcome(self) -> range:
        """The positions of its events, once it has ended; raises what became of it instead."""
        if self.error is not None:
            raise self.error
        return self.positions


def _packed_message(received: Received | None) -> Packed:
    if received is None:
        return _NOTHING
    return packed_text(received.message_id), packed_bytes(received.body_sha256)


def _packed_tracking(tracking: Tracking | None) -> Packed:
    if tracking is None:
        return _NOTHING
    return packed_text(tracking.application_name), packed_int8(tracking.notification_id)


_NOTHING: Packed = (packed_text(None), packed_int8(None))


def _packed_event(row: LogRow, stream: bytes) -> Packed:
    return (
        stream,
        packed_int8(row.originator_version),
        _packed_name(row.topic),
        packed_bytes(row.state),
        packed_bytes(event_id_bytes(row.originator_id, row.originator_version)),
    )


def _arrays(kinds: Sequence[ArrayOf], count: int, columns: Sequence[Sequence[bytes]]) -> list[bytes]:
    return [kind.packed(count, elements) for kind, elements in zip(kinds, columns, strict=True)]


def parameters(group: Sequence[Append]) -> list[bytes]:
    """The parameters of `APPEND` for a group."""
    said = _arrays(_RECORD, len(group), list(zip(*(append.record for append in group), strict=True)))
    for n, kinds, columns in (
        (0, _STREAM, [append.streams for append in group]),
        (1, _EVENT, [append.events for append in group]),
        (2, _DOCUMENT, [append.documents for append in group]),
    ):
        count = sum(append.counts[n] for append in group)
        whose = [packed_int4(number) * append.counts[n] for number, append in enumerate(group, start=1)]
        said.append(INT4S.packed(count, whose))
        said += _arrays(kinds, count, list(zip(*columns, strict=True)))
    return said


class Reply(NamedTuple):
    """What ``log.append`` says of a group: the head before it, and for each append its outcome.

    Where a message was known, the first and the last position of what it had led to.
    """

    before: int
    outcomes: Sequence[str]
    firsts: Sequence[int] | None
    lasts: Sequence[int] | None


def placed(group: Sequence[Append], reply: Reply) -> Iterator[tuple[str, range]]:
    """The outcome of each append of a group, and the positions of its events."""
    before, outcomes, firsts, lasts = reply
    for number, (append, outcome) in enumerate(zip(group, outcomes, strict=True)):
        if outcome == "appended":
            yield outcome, range(before + 1, before + 1 + len(append.rows))
            before += len(append.rows)
        elif outcome == "known":
            assert firsts is not None
            assert lasts is not None
            yield outcome, range(firsts[number], lasts[number] + 1)
        else:
            yield outcome, range(0)


def meant(append: Append, outcome: str, positions: range) -> tuple[range, Exception | None]:
    """What an outcome means to whoever appended."""
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
