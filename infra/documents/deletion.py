"""Delete the bytes of documents whose retention period has ended; only the database's owner can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection


def delete(owner: Connection[Any], sha256s: Sequence[str]) -> None:
    """Delete the bytes of documents, with the trigger that forbids it disabled for this transaction only."""
    with owner.transaction():
        owner.execute("ALTER TABLE log.documents DISABLE TRIGGER only_added_to")
        owner.execute("DELETE FROM log.documents WHERE sha256 = ANY(%s)", (list(sha256s),))
        owner.execute("ALTER TABLE log.documents ENABLE TRIGGER only_added_to")
