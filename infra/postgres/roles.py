"""The login of the program, which has no privileges of its own; and the refusal of logins with too many."""

from __future__ import annotations

import os
import secrets
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres.connections import (
    AUDITOR,
    CONNECTION_PARAMETERS,
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
"""A setting of the eventsourcing library that makes appends take no lock, so that readers lose events."""


def program_login(owner_url: str) -> str:
    """Return an address of the owner's database with a login for the program and a new password; see `admit`."""
    at = conninfo_to_dict(owner_url)
    return f"postgresql://trunkline_service:{secrets.token_hex(24)}@{at['host']}:{at['port']}/{at['dbname']}"


def admit(owner_url: str, database_url: str) -> None:
    """Create the login that ``database_url`` names, and grant it the roles of the program.

    It has no privileges of its own: each connection assumes the role for its purpose. Its password is set to that of
    the address, if there is one.

    Raises:
        DatabaseUnavailable: the database cannot be reached, its owner may not create logins, or ``database_url`` names
        no
            login, the owner, or a superuser.
    """
    with named(database_url):
        login = conninfo_to_dict(database_url)
    if not login.get("user"):
        raise DatabaseUnavailable("TRUNKLINE_DATABASE_URL names no user; add the login that the program is to use.")
    with named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **CONNECTION_PARAMETERS)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        name, given = str(login["user"]), str(login.get("password") or "")
        known = conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        if name == conn.info.user or (known and known[0]):
            raise DatabaseUnavailable(
                f"TRUNKLINE_DATABASE_URL names {name}, who is {'a superuser' if known and known[0] else 'the owner'}; "
                "name a login for the program alone, which will be created."
            )
        made = sql.SQL("{} ROLE {} LOGIN NOINHERIT").format(
            sql.SQL("ALTER" if known else "CREATE"), sql.Identifier(name)
        )
        if given:  # only the verifier is sent, so that no server log has the password
            verifier = conn.pgconn.encrypt_password(given.encode(), name.encode(), b"scram-sha-256").decode()
            made += sql.SQL(" PASSWORD {}").format(sql.Literal(verifier))
        conn.execute(made)
        for role in (WRITER, PROJECTOR, AUDITOR):
            conn.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))


def check_login(database_url: str) -> None:
    """Check that the program can work on a database, and that its login cannot rewrite history.

    Raises:
        DatabaseUnavailable: the database cannot be reached or is not migrated; its login could change or delete events;
            or unsafe functions of the library are enabled.
        AnotherVersion: another version of Trunkline migrated it.
    """
    if os.environ.get(NEVER_SET):
        raise DatabaseUnavailable(
            f"{NEVER_SET} is set, with which appends take no lock and readers lose events; unset it and start again."
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
            "the program could rewrite history. Set TRUNKLINE_OWNER_URL to that address, and TRUNKLINE_DATABASE_URL to "
            "the same server with a login of its own; trunkline migrate creates it."
        )


_TOO_MUCH: LiteralString = """
    SELECT session_user AS login,
           CASE WHEN role <> session_user THEN 'may become ' || role || ', which ' ELSE '' END || why AS why
      FROM (SELECT r.rolname AS role,
                   CASE WHEN r.rolsuper THEN 'is a superuser'
                        WHEN r.rolreplication THEN 'may replicate'
                        WHEN r.rolcreaterole THEN 'may create roles and grant them'
                        WHEN r.rolname IN ('pg_execute_server_program', 'pg_write_server_files')
                        THEN 'may write files of the server'
                        WHEN r.oid = c.relowner THEN 'owns the log'
                        WHEN has_schema_privilege(r.oid, 'log', 'CREATE')
                        THEN 'may create tables in the schema of the log'
                        WHEN has_table_privilege(r.oid, t.oid, 'DELETE, TRUNCATE, TRIGGER')
                             OR has_any_column_privilege(r.oid, t.oid, 'UPDATE')
                             OR t.oid <> keys AND has_any_column_privilege(r.oid, t.oid, 'INSERT')
                        THEN 'may write to ' || t.oid::regclass || ' without its functions' END AS why
              FROM pg_roles AS r, pg_class AS c, to_regclass('log.person_keys') AS keys, pg_class AS t
             WHERE c.oid = 'log.events'::regclass AND t.oid IN (c.oid, 'log.head'::regclass, keys)
               AND pg_has_role(session_user, r.oid, 'MEMBER')) AS roles
     WHERE why IS NOT NULL
     ORDER BY role <> session_user, role
     LIMIT 1
"""
