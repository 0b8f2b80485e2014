"""Arrays for PostgreSQL, packed by us: psycopg's own dumper takes three times as long.

The layout is that of ``array_recv`` (src/backend/utils/adt/arrayfuncs.c): one dimension and its length, then for each
element its length in bytes (-1 for null) and its bytes, all in network order. The functions here give an element that
way, so whoever appends packs its own in its own thread, and whoever writes a group only joins them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

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
    """An element of `ByteaArray` or, with sixteen bytes, of `UuidArray`."""
    return _NULL if value is None else _LENGTH(len(value)) + value


def packed_text(value: str | None) -> bytes:
    """An element of `TextArray`."""
    return _NULL if value is None else packed_bytes(value.encode())


def packed_int4(value: int) -> bytes:
    """An element of `Int4Array`."""
    return _INT4(4, value)


def packed_int8(value: int | None) -> bytes:
    """An element of `Int8Array`."""
    return _NULL if value is None else _INT8(8, value)


def packed_moment(value: datetime) -> bytes:
    """An element of `TimestampArray`."""
    return packed_int8(microseconds(value))


class PackedArray:
    """An array of ``count`` elements, each packed by the function for its kind."""

    OID: ClassVar[int]
    ELEMENT_OID: ClassVar[int]

    def __init__(self, count: int, packed: Iterable[bytes]) -> None:
        self._count = count
        self._packed = packed

    def dumped(self) -> bytes:
        """All of it, in PostgreSQL's binary format."""
        if not self._count:
            return _EMPTY(0, 0, self.ELEMENT_OID)
        return _HEADER(1, 1, self.ELEMENT_OID, self._count, 1) + b"".join(self._packed)


class TextArray(PackedArray):
    """``text[]``."""

    OID, ELEMENT_OID = 1009, 25


class ByteaArray(PackedArray):
    """``bytea[]``."""

    OID, ELEMENT_OID = 1001, 17


class UuidArray(PackedArray):
    """``uuid[]``."""

    OID, ELEMENT_OID = 2951, 2950


class Int4Array(PackedArray):
    """``int[]``."""

    OID, ELEMENT_OID = 1007, 23


class Int8Array(PackedArray):
    """``bigint[]``."""

    OID, ELEMENT_OID = 1016, 20


class TimestampArray(PackedArray):
    """``timestamptz[]``."""

    OID, ELEMENT_OID = 1185, 1184


class _PackedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: PackedArray) -> bytes:
        return obj.dumped()


def take_packed_arrays(conn: Connection[Any]) -> None:
    """Let a connection take these arrays as parameters."""
    for kind in (TextArray, ByteaArray, UuidArray, Int4Array, Int8Array, TimestampArray):
        conn.adapters.register_dumper(kind, type(f"{kind.__name__}Dumper", (_PackedDumper,), {"oid": kind.OID}))
