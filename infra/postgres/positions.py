"""How far whoever follows the log has come: each projection, each rebuild, and the relay, by its name."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import DictRow


def position_of(conn: Connection[DictRow], name: str) -> int:
    """How far the projection (or the relay) of a name has come; 0 where it has not begun."""
    row = conn.execute("SELECT position FROM read.positions WHERE name = %s", (name,)).fetchone()
    return row["position"] if row else 0


def move_position(conn: Connection[DictRow], name: str, position: int) -> None:
    """Record how far the projection (or the relay) of a name has come."""
    conn.execute(
        "INSERT INTO read.positions (name, position) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        (name, position),
    )


def drop_position(conn: Connection[DictRow], name: str) -> None:
    """Forget how far one has come that is no more."""
    conn.execute("DELETE FROM read.positions WHERE name = %s", (name,))
