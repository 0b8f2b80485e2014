"""The schema of the database, applied by its owner: numbered migrations once, functions and views as they are today.

``migrations/*.sql`` says how tables came to be: each file is applied once, in order. ``functions/*.sql`` and
``views/*.sql`` hold the only definition of each function and view, with its comment, grants and triggers: they are
applied after the migrations whenever a migration or their text is new. See docs/decisions/0017.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import scalar_row, tuple_row

from infra.postgres.connections import (
    CONNECTION_PARAMETERS,
    OWNER_SETTING,
    WRITER,
    DatabaseUnavailable,
    named,
    whereabouts,
)

MIGRATION_LOCK = 7_286_131


class AnotherVersion(DatabaseUnavailable):
    """Another version of Trunkline migrated the database."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was made by another version of Trunkline, and this one cannot use it: run that version if it is "
            "newer; if it is from before the first release, start with a new database or a new data directory."
        )


def migrations() -> dict[str, bytes]:
    """Return the numbered migrations by name, in order."""
    return _scripts("migrations")


def definitions() -> dict[str, bytes]:
    """Return the definitions of functions and views by path, in the order in which they are applied."""
    return {f"{folder}/{name}": text for folder in ("functions", "views") for name, text in _scripts(folder).items()}


def migrate(owner_url: str) -> list[str]:
    """Bring the schema up to date, and return the files that were applied. Concurrent calls wait for each other.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or its user may not create what is needed.
        AnotherVersion: nothing was changed.
    """
    with named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **CONNECTION_PARAMETERS)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        if foreign(conn):
            raise AnotherVersion(f"{OWNER_SETTING} ({whereabouts(owner_url)})")
        conn.execute(
            "CREATE TABLE IF NOT EXISTS public.trunkline_migrations "
            "(name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = missing(conn)
        if any(name in migrations() for name in applied):  # a migration may have dropped what is defined again here
            applied = [name for name in applied if name in migrations()] + list(definitions())
        scripts = migrations() | definitions()
        for name in applied:
            conn.execute(scripts[name])
            conn.execute(
                "INSERT INTO public.trunkline_migrations (name, sha256) VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, applied_at = now()",
                (name, _sha256(scripts[name])),
            )
        conn.execute(sql.SQL("GRANT SELECT ON public.trunkline_migrations TO {}").format(sql.Identifier(WRITER)))
    return applied


def foreign(conn: Connection[Any]) -> bool:
    """Whether a database was migrated by a version that has migrations which this one does not have."""
    exists = "SELECT to_regclass('public.trunkline_migrations') IS NOT NULL"
    if not conn.cursor(row_factory=scalar_row).execute(exists).fetchone():
        return False
    names = conn.cursor(row_factory=scalar_row).execute("SELECT name FROM public.trunkline_migrations").fetchall()
    return any("/" not in name and name not in migrations() for name in names)


def missing(conn: Connection[Any]) -> list[str]:
    """Return what is still to be applied: migrations, and definitions whose text is not the one in the database."""
    rows = conn.cursor(row_factory=tuple_row).execute("SELECT name, sha256 FROM public.trunkline_migrations").fetchall()
    known: dict[str, str] = dict(rows)
    return [name for name in migrations() if name not in known] + [
        name for name, text in definitions().items() if known.get(name) != _sha256(text)
    ]


def _scripts(folder: str) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in files("infra.postgres").joinpath(folder).iterdir()}
    return {name: text for name, text in sorted(found.items()) if name.endswith(".sql")}


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
