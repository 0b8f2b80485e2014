# ruff: noqa: INP001 - a program of its own, not part of a package
"""Recompute the hash chain of the log from psql's output, with the standard library and no code of Trunkline.

Usage:
    export PGOPTIONS="-c role=trunkline_auditor"
    psql "$AUDITOR_URL" -c "COPY (SELECT position, stream, version, topic, state, recorded_at, account_id, event_id,
        correlation_id, causation_id, actor, hash FROM log.events ORDER BY position) TO STDOUT (FORMAT BINARY)" \
        | python3 docs/recompute_chain.py
"""

from __future__ import annotations

import hashlib
import struct
import sys
from typing import BinaryIO

FIXED = {0, 2, 5, 7}  # position, version, recorded_at, event_id: as they are; all others are preceded by their length


def main(copied: BinaryIO) -> str:
    """Read PostgreSQL's binary COPY format, row by row. Returns where the chain breaks, or how far it is valid."""
    copied.read(11 + 4)  # the signature and flags
    copied.read(struct.unpack(">i", copied.read(4))[0])  # the header extension, which is empty
    hash_, expected = bytes(32), 1
    while struct.unpack(">h", copied.read(2))[0] != -1:  # the number of columns; -1 after the last row
        canonical, position, found = b"", 0, b""
        for column in range(12):
            length = copied.read(4)
            value = copied.read(max(0, struct.unpack(">i", length)[0]))
            if column == 0:
                position = int.from_bytes(value, "big", signed=True)
            if column == 11:  # noqa: PLR2004 - the hash is the twelfth
                found = value
            else:
                canonical += value if column in FIXED else length + value
        hash_ = hashlib.sha256(hash_ + canonical).digest()
        if position != expected or hash_ != found:
            return f"Position {expected} is the first that is wrong."
        expected += 1
    return f"{expected - 1} positions are whole, to hash {hash_.hex()}."


if __name__ == "__main__":
    try:
        sys.stdout.write(main(sys.stdin.buffer) + "\n")
    except struct.error:
        sys.exit("This is no binary COPY of the log, or it was cut off.")
