"""The binary format of PostgreSQL for arrays of rows: the dumpers of psycopg take many times as long.

The layouts are those of ``array_recv`` (src/backend/utils/adt/arrayfuncs.c), one dimension and its length, then for
each element its length in bytes and its bytes; and of ``record_recv`` (rowtypes.c), the number of columns, then for
each its type, its length in bytes (-1 for null) and its bytes. All is in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

BYTEA: Final = 17
INT8: Final = 20
INT4: Final = 23
TEXT: Final = 25
TIMESTAMPTZ: Final = 1184
UUID: Final = 2950
"""Oids of types in ``pg_type``."""

_LENGTH = struct.Struct(">i").pack
_TYPE_AND_LENGTH = struct.Struct(">Ii").pack
_HEADER = struct.Struct(">iiIii").pack
_INT4 = struct.Struct(">ii").pack
_NULL = _LENGTH(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Return a time as PostgreSQL stores it: microseconds since 2000-01-01 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def packed_bytes(value: bytes | None) -> bytes:
    """Return bytes with their length before them."""
    return _NULL if value is None else _LENGTH(len(value)) + value


def packed_text(value: str | None) -> bytes:
    """Return a text in UTF-8 with its length in bytes before it."""
    return _NULL if value is None else packed_bytes(value.encode())


def text_column(value: str | None) -> bytes:
    """Return a text as a column of a row."""
    if value is None:
        return _NO_TEXT
    text = value.encode()
    return _TYPE_AND_LENGTH(TEXT, len(text)) + text


name_column = lru_cache(4096)(text_column)
"""The same, cached, for frequent texts: topics, actors, accounts."""

_NO_TEXT = _TYPE_AND_LENGTH(TEXT, -1)


def bytes_column(value: bytes) -> bytes:
    """Return bytes as a column of a row."""
    return _TYPE_AND_LENGTH(BYTEA, len(value)) + value


def array(element_type: int, elements: Sequence[bytes]) -> bytes | None:
    """Return an array of elements, each with its length before it; None for an empty one."""
    return _HEADER(1, 1, element_type, len(elements), 1) + b"".join(elements) if elements else None


@lru_cache(4096)
def packed_int4(value: int) -> bytes:
    """Return an element of an array of ``int4``."""
    return _INT4(4, value)
