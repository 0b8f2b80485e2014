"""Arrays of rows for PostgreSQL, packed by us: psycopg's own dumpers take many times as long.

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
"""Types by their numbers in ``pg_type``."""

_LENGTH = struct.Struct(">i").pack
_TYPE_AND_LENGTH = struct.Struct(">Ii").pack
_HEADER = struct.Struct(">iiIii").pack
_INT4 = struct.Struct(">ii").pack
_NULL = _LENGTH(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """A moment as PostgreSQL keeps it: microseconds since 2000-01-01 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def packed_bytes(value: bytes | None) -> bytes:
    """Bytes behind their length."""
    return _NULL if value is None else _LENGTH(len(value)) + value


def packed_text(value: str | None) -> bytes:
    """A text in UTF-8, behind its length in bytes."""
    return _NULL if value is None else packed_bytes(value.encode())


def text_column(value: str | None) -> bytes:
    """A text as a column of a row."""
    if value is None:
        return _NO_TEXT
    text = value.encode()
    return _TYPE_AND_LENGTH(TEXT, len(text)) + text


name_column = lru_cache(4096)(text_column)
"""The same, for texts that come again and again: topics, actors, accounts."""

_NO_TEXT = _TYPE_AND_LENGTH(TEXT, -1)


def bytes_column(value: bytes) -> bytes:
    """Bytes as a column of a row."""
    return _TYPE_AND_LENGTH(BYTEA, len(value)) + value


def array(element_type: int, elements: Sequence[bytes]) -> bytes | None:
    """An array of elements, each behind its length; none where there are none."""
    return _HEADER(1, 1, element_type, len(elements), 1) + b"".join(elements) if elements else None


@lru_cache(4096)
def packed_int4(value: int) -> bytes:
    """An element of an array of ``int4``."""
    return _INT4(4, value)
