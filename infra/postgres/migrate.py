"""The schema of the database: numbered migrations, each applied once, by the database's owner."""

from __future__ import annotations

from importlib.resources import files

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.postgres.connections import LINE, OWNER_SETTING, WRITER, named

MIGRATION_LOCK = 7_286_131


def scripts() -> dict[str, bytes]:
    """The migrations by their names, in their order."""
    folder = files("infra.postgres").joinpath("migrations")
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(".sql")}
    return dict(sorted(found.items()))


def migrate(owner_url: str) -> list[str]:
    """Bring the schema up to date, as its owner; several may do so at once, and one does it. Gives the files applied.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or its user may not create what is needed.
    """
    applied = []
    with named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **LINE)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        conn.execute(
            "CREATE TABLE IF NOT EXISTS public.trunkline_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = {name for (name,) in conn.execute("SELECT name FROM public.trunkline_migrations")}
        for name, script in scripts().items():
            if name not in known:
                conn.execute(script)
                conn.execute("INSERT INTO public.trunkline_migrations (name) VALUES (%s)", (name,))
                applied.append(name)
        conn.execute(sql.SQL("GRANT SELECT ON public.trunkline_migrations TO {}").format(sql.Identifier(WRITER)))
    return applied
