"""Documents whose time is over: which there are, and how their bytes are deleted, by the database's owner alone.

Which are old enough the read model of billing says: it has an index for that, and may well be a little behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

_KEPT = (
    "FROM read.billing_documents AS d WHERE issued_at < %(moment)s "
    "AND EXISTS (SELECT FROM log.documents AS k WHERE k.sha256 = d.sha256)"
)


@dataclass(frozen=True)
class KeptDocument:
    """An invoice, or a credit note, whose bytes are there."""

    document_id: str
    sha256: str


def count_kept(owner: Connection[Any], issued_before: datetime) -> int:
    """How many documents that were issued before a moment are still there."""
    query = f"SELECT count(*) AS count {_KEPT}"
    found = owner.execute(query.encode(), {"moment": issued_before}).fetchone()
    return int(found["count"]) if found else 0


def kept(owner: Connection[Any], issued_before: datetime, limit: int) -> list[KeptDocument]:
    """At most ``limit`` of them, the oldest first."""
    query = f"SELECT document_id, sha256 {_KEPT} ORDER BY issued_at, document_id LIMIT %(limit)s"
    cursor = owner.cursor(row_factory=class_row(KeptDocument))
    return cursor.execute(query.encode(), {"moment": issued_before, "limit": limit}).fetchall()


def delete(owner: Connection[Any], documents: Sequence[KeptDocument]) -> None:
    """Delete their bytes. The trigger that refuses this to everybody rests for the one transaction."""
    with owner.transaction():
        owner.execute("ALTER TABLE log.documents DISABLE TRIGGER only_added_to")
        owner.execute("DELETE FROM log.documents WHERE sha256 = ANY(%s)", ([each.sha256 for each in documents],))
        owner.execute("ALTER TABLE log.documents ENABLE TRIGGER only_added_to")
