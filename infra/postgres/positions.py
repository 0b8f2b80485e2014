"""Saved positions: how far each projection, rebuild and the relay has read the log, by name."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import DictRow


def position_of(conn: Connection[DictRow], name: str) -> int:
    """Return the saved position of a name; 0 if there is none."""
    row = conn.execute("SELECT position FROM read.positions WHERE name = %s", (name,)).fetchone()
    return row["position"] if row else 0


def move_position(conn: Connection[DictRow], name: str, position: int) -> None:
    """Save the position of a name."""
    conn.execute(
        "INSERT INTO read.positions (name, position) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        (name, position),
    )


def drop_position(conn: Connection[DictRow], name: str) -> None:
    """Delete the position of a name."""
    conn.execute("DELETE FROM read.positions WHERE name = %s", (name,))
