"""Arrays for PostgreSQL, packed by us: psycopg's own dumper takes three times as long.

The layout is that of ``array_recv`` (src/backend/utils/adt/arrayfuncs.c): one dimension and its length, then for each
element its length in bytes (-1 for null) and its bytes, all in network order. The functions here give an element that
way, so whoever appends packs its own in its own thread, and whoever writes a group only joins them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_LENGTH = struct.Struct(">i").pack
_INT4 = struct.Struct(">ii").pack
_INT8 = struct.Struct(">iq").pack
_HEADER = struct.Struct(">iiIii").pack
_EMPTY = struct.Struct(">iiI").pack
_NULL = _LENGTH(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """A moment as PostgreSQL keeps it: microseconds since 2000-01-01 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def packed_bytes(value: bytes | None) -> bytes:
    """An element of `BYTEAS` or, with sixteen bytes, of `UUIDS`."""
    return _NULL if value is None else _LENGTH(len(value)) + value


def packed_text(value: str | None) -> bytes:
    """An element of `TEXTS`."""
    return _NULL if value is None else packed_bytes(value.encode())


def packed_int4(value: int) -> bytes:
    """An element of `INT4S`."""
    return _INT4(4, value)


def packed_int8(value: int | None) -> bytes:
    """An element of `INT8S`."""
    return _NULL if value is None else _INT8(8, value)


def packed_moment(value: datetime) -> bytes:
    """An element of `TIMESTAMPS`."""
    return packed_int8(microseconds(value))


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """A kind of array, by the type of its elements: each packed by the function for it."""

    oid: int
    """The elements' type, as in ``pg_type``."""

    def packed(self, count: int, elements: Iterable[bytes]) -> bytes:
        """An array of ``count`` elements, in PostgreSQL's binary format."""
        if not count:
            return _EMPTY(0, 0, self.oid)
        return _HEADER(1, 1, self.oid, count, 1) + b"".join(elements)


TEXTS = ArrayOf(25)
BYTEAS = ArrayOf(17)
UUIDS = ArrayOf(2950)
INT4S = ArrayOf(23)
INT8S = ArrayOf(20)
TIMESTAMPS = ArrayOf(1184)
