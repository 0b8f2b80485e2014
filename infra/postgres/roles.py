"""The program's login, which of itself may do nothing; and the refusal to work with one that may do too much."""

from __future__ import annotations

import os
import secrets
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres.connections import (
    AUDITOR,
    LINE,
    OWNER_SETTING,
    PROJECTOR,
    WRITER,
    DatabaseUnavailable,
    connect,
    named,
    whereabouts,
)
from infra.postgres.migrate import MIGRATION_LOCK, AnotherVersion, foreign, missing

NEVER_SET = "POSTGRES_ENABLE_DB_FUNCTIONS"
"""A setting of the eventsourcing library under which appends take no lock, and readers lose events."""


def program_login(owner_url: str) -> str:
    """An address for the program beside the owner's, with a login of its own and a new password; see `admit`."""
    at = conninfo_to_dict(owner_url)
    return f"postgresql://trunkline_service:{secrets.token_hex(24)}@{at['host']}:{at['port']}/{at['dbname']}"


def admit(owner_url: str, database_url: str) -> None:
    """Make the login that ``database_url`` names, and let it work as the program's roles.

    Of itself it may do nothing: each connection takes on the role of what it is for. Its password becomes the one that
    the address has; where that has none, it stays as it is.

    Raises:
        DatabaseUnavailable: the database cannot be reached, its owner may not make logins, or ``database_url`` names
            none, or one that is the owner, or a superuser.
    """
    with named(database_url):
        login = conninfo_to_dict(database_url)
    if not login.get("user"):
        raise DatabaseUnavailable("TRUNKLINE_DATABASE_URL names no user: it says which login the program is to have.")
    with named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **LINE)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        name, given = str(login["user"]), str(login.get("password") or "")
        known = conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        if name == conn.info.user or (known and known[0]):
            raise DatabaseUnavailable(
                f"TRUNKLINE_DATABASE_URL names {name}, who is {'a superuser' if known and known[0] else 'the owner'}; "
                "let it name a login of the program's own, which is made."
            )
        made = sql.SQL("{} ROLE {} LOGIN NOINHERIT").format(
            sql.SQL("ALTER" if known else "CREATE"), sql.Identifier(name)
        )
        if given:  # what is sent is the verifier, so that no log of the server's has the password
            verifier = conn.pgconn.encrypt_password(given.encode(), name.encode(), b"scram-sha-256").decode()
            made += sql.SQL(" PASSWORD {}").format(sql.Literal(verifier))
        conn.execute(made)
        for role in (WRITER, PROJECTOR, AUDITOR):
            conn.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))


def wary(database_url: str) -> None:
    """See that the program can work there, and cannot do what nobody should.

    Raises:
        DatabaseUnavailable: it cannot be reached; or the program's login could change or delete what happened; or the
            library's unsafe functions are switched on.
    """
    if os.environ.get(NEVER_SET):
        raise DatabaseUnavailable(
            f"{NEVER_SET} is set: with it appends take no lock, and readers lose events. Unset it, and start again."
        )
    with named(database_url), connect(database_url, WRITER) as conn:
        where = f"TRUNKLINE_DATABASE_URL ({whereabouts(database_url)})"
        if foreign(conn):
            raise AnotherVersion(where)
        if lacking := missing(conn):
            raise DatabaseUnavailable(
                f"{where} lacks {', '.join(lacking)}; set TRUNKLINE_OWNER_URL, and run trunkline migrate."
            )
        found = conn.execute(_TOO_MUCH).fetchone()
    if found:
        raise DatabaseUnavailable(
            f"TRUNKLINE_DATABASE_URL ({whereabouts(database_url)}) logs in as {found['login']}, who {found['why']}: "
            "whoever runs the program could rewrite history. Give that address as TRUNKLINE_OWNER_URL, and as "
            "TRUNKLINE_DATABASE_URL the same server with a login of its own; trunkline migrate makes it."
        )


_TOO_MUCH: LiteralString = """
    SELECT session_user AS login,
           CASE WHEN role <> session_user THEN 'may become ' || role || ', which ' ELSE '' END || why AS why
      FROM (SELECT r.rolname AS role,
                   CASE WHEN r.rolsuper THEN 'is a superuser'
                        WHEN r.rolreplication THEN 'may replicate'
                        WHEN r.rolcreaterole THEN 'may make roles and grant them'
                        WHEN r.rolname IN ('pg_execute_server_program', 'pg_write_server_files')
                        THEN 'writes files of the server'
                        WHEN r.oid = c.relowner THEN 'owns the log'
                        WHEN has_schema_privilege(r.oid, 'log', 'CREATE') THEN 'may make tables beside the log'
                        WHEN has_table_privilege(r.oid, t.oid, 'DELETE, TRUNCATE, TRIGGER')
                             OR has_any_column_privilege(r.oid, t.oid, 'UPDATE')
                             OR t.oid <> keys AND has_any_column_privilege(r.oid, t.oid, 'INSERT')
                        THEN 'may write to ' || t.oid::regclass || ' past its functions' END AS why
              FROM pg_roles AS r, pg_class AS c, to_regclass('log.person_keys') AS keys, pg_class AS t
             WHERE c.oid = 'log.events'::regclass AND t.oid IN (c.oid, 'log.head'::regclass, keys)
               AND pg_has_role(session_user, r.oid, 'MEMBER')) AS roles
     WHERE why IS NOT NULL
     ORDER BY role <> session_user, role
     LIMIT 1
"""
