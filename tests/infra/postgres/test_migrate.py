"""The schema: migrated concurrently, all or nothing, equal to the files, and refused if another version made it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent

import infra.postgres.migrate
from handlers.runtime.servers import open_servers
from infra.audit.auditor import auditing
from infra.audit.hash_chain import Verifier
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import DatabaseUnavailable
from infra.postgres.migrate import AnotherVersion, definitions, migrate, migrations
from infra.postgres.roles import admit
from infra.postgres.structure import TABLES, tables
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from infra.settings import settings
from tests.support.databases import ServerAddresses, as_program, fresh_database

FILES = [*migrations(), *definitions()]


@pytest.fixture
def empty_database(servers: ServerAddresses) -> Iterator[str]:
    """A database that was never migrated."""
    with fresh_database(servers) as url:
        yield url


@pytest.fixture
def migrated(empty_database: str) -> str:
    """A migrated database without rows."""
    migrate(empty_database)
    admit(empty_database, as_program(empty_database))
    return empty_database


def query_column(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return [value for (value,) in conn.execute(query.encode()).fetchall()]


def applied(url: str) -> list[str]:
    return query_column(url, "SELECT name FROM public.trunkline_migrations")


FUNCTIONS = """
    SELECT pg_get_functiondef(p.oid) || coalesce(p.proacl::text, 'public') FROM pg_proc AS p
     WHERE p.pronamespace::regnamespace::text IN ('log', 'read', 'projection', 'reporting') ORDER BY 1
"""
VIEWS = """
    SELECT concat_ws(' ', c.oid::regclass, pg_get_viewdef(c.oid), c.relacl, obj_description(c.oid, 'pg_class'))
      FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.relnamespace::regnamespace::text !~ '^(pg_|information)'
     ORDER BY 1
"""
FUNCTION_NAMES = """
    SELECT p.pronamespace::regnamespace || '.' || p.proname FROM pg_proc AS p
     WHERE p.pronamespace::regnamespace::text IN ('log', 'read', 'projection', 'reporting') ORDER BY 1
"""
VIEW_NAMES = """
    SELECT c.oid::regclass::text FROM pg_class AS c
     WHERE c.relkind IN ('v', 'm') AND c.relnamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1
"""


def structure(url: str) -> tuple[str, list[Any], list[Any]]:
    with psycopg.connect(url) as conn:
        return tables(conn), query_column(url, FUNCTIONS), query_column(url, VIEWS)


# --- the files and the database ------------------------------------------------------------------------------------


def test_each_function_and_each_view_has_one_file_with_its_name(migrated: str) -> None:
    files = [path.removesuffix(".sql").split("/") for path in definitions()]
    assert query_column(migrated, FUNCTION_NAMES) == sorted(name for folder, name in files if folder == "functions")
    views = {name for folder, name in files if folder == "views"}
    assert set(query_column(migrated, VIEW_NAMES)) == views - {"reporting_columns"}
    text = b"\n".join(definitions().values()).decode()
    defined = re.findall(r"^CREATE OR REPLACE (?:FUNCTION|VIEW) ([a-z_.]+)", text, re.MULTILINE)
    assert sorted(defined) == sorted(name for _, name in files if name != "reporting_columns")


def test_no_migration_defines_a_function_or_a_view() -> None:
    """The only definitions are in functions/ and views/. A migration may drop one whose signature changes."""
    for name, script in migrations().items():
        assert not re.search(rb"CREATE (OR REPLACE )?(FUNCTION|VIEW)|ALTER FUNCTION", script), name


def test_a_fresh_database_has_the_functions_views_and_tables_of_the_files(migrated: str) -> None:
    before = structure(migrated)
    assert before[0] == TABLES.read_text(encoding="utf-8"), "make structure writes tables.sql"
    with psycopg.connect(migrated) as owner:
        for text in definitions().values():
            owner.execute(text)
    assert structure(migrated) == before


def test_a_manual_change_is_detected(migrated: str) -> None:
    """Otherwise the test above would prove nothing."""
    before = structure(migrated)
    with psycopg.connect(migrated) as owner:
        owner.execute("ALTER FUNCTION log.append RESET plan_cache_mode")
        owner.execute("CREATE OR REPLACE VIEW log.history AS SELECT * FROM (TABLE log.history) AS h WHERE position > 1")
        owner.execute("ALTER TABLE read.orders ALTER COLUMN state DROP NOT NULL")
    assert [one == other for one, other in zip(structure(migrated), before, strict=True)] == [False, False, False]


# --- migrating -----------------------------------------------------------------------------------------------------


def test_migrating_again_changes_nothing(empty_database: str) -> None:
    assert migrate(empty_database) == FILES
    first = structure(empty_database)
    assert migrate(empty_database) == []
    assert structure(empty_database) == first
    assert sorted(applied(empty_database)) == sorted(FILES)


def test_if_eight_threads_migrate_at_once_exactly_one_applies_the_files(empty_database: str) -> None:
    start = Barrier(8)

    def migrate_at_once() -> list[str]:
        start.wait()
        return migrate(empty_database)

    with ThreadPoolExecutor(8) as pool:
        outcomes = [future.result() for future in [pool.submit(migrate_at_once) for _ in range(8)]]
    assert sorted(outcomes) == [*[[]] * 7, FILES]
    assert sorted(applied(empty_database)) == sorted(FILES)


def test_a_failed_migration_changes_nothing_and_can_be_retried(empty_database: str) -> None:
    with psycopg.connect(empty_database) as conn:
        conn.execute("CREATE SCHEMA read")  # conflicts with a later file
    with pytest.raises(DatabaseUnavailable, match="already exists"):
        migrate(empty_database)
    missing = "SELECT num_nulls(to_regclass('log.events'), to_regclass('trunkline_migrations'))"
    assert query_column(empty_database, missing) == [2]
    with psycopg.connect(empty_database) as conn:
        conn.execute("DROP SCHEMA read")
    assert migrate(empty_database) == FILES


def test_only_a_changed_definition_is_applied_and_the_log_continues(
    migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash chain is independent of versions: the next version of the function continues it."""
    current = definitions()
    with postgres_log(as_program(migrated)) as log:
        log._recorder.insert_events([StoredEvent("candy-1", 1, "candy.Made.v1", b"{}")])
    changed = current | {"functions/log.append.sql": current["functions/log.append.sql"] + b"-- changed\n"}
    monkeypatch.setattr(infra.postgres.migrate, "definitions", lambda: changed)
    message = r"lacks functions/log\.append\.sql; set TRUNKLINE_OWNER_URL, and run trunkline migrate"
    with pytest.raises(DatabaseUnavailable, match=message), postgres_log(as_program(migrated)):
        pass
    assert migrate(migrated) == ["functions/log.append.sql"]
    with postgres_log(as_program(migrated)) as log:
        log._recorder.insert_events([StoredEvent("candy-1", 2, "candy.Made.v1", b"{}")])
    with auditing(as_program(migrated)) as auditor:
        assert Verifier(auditor).verify().position == 2


def test_a_new_migration_applies_all_definitions_again(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a migration may drop a view whose columns change, without recreating its dependents."""
    before = structure(migrated)
    extended = migrations() | {"0999_views.sql": b"DROP VIEW reporting.orders; DROP FUNCTION log.destroy_key;"}
    monkeypatch.setattr(infra.postgres.migrate, "migrations", lambda: extended)
    assert migrate(migrated) == ["0999_views.sql", *definitions()]
    assert structure(migrated) == before


# --- another version -----------------------------------------------------------------------------------------------

NOT_OURS = "was made by another version of Trunkline, and this one cannot use it: run that version if it is newer; "


def make_pre_release(url: str) -> None:
    """Make a database look like one from before the migrations were squashed."""
    with psycopg.connect(url) as owner:
        owner.execute("DROP TABLE IF EXISTS public.trunkline_migrations")
        owner.execute(
            "CREATE TABLE public.trunkline_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        owner.execute("INSERT INTO public.trunkline_migrations (name) VALUES ('0001_event_log.sql')")
        owner.execute("GRANT SELECT ON public.trunkline_migrations TO trunkline_writer")


def make_later_version(url: str) -> None:
    with psycopg.connect(url) as owner:
        owner.execute("INSERT INTO public.trunkline_migrations (name, sha256) VALUES ('0999_later.sql', '')")


@pytest.mark.parametrize("change", [make_pre_release, make_later_version])
def test_a_database_of_another_version_is_refused_in_one_sentence_and_unchanged(
    migrated: str, change: Callable[[str], None]
) -> None:
    change(migrated)
    before = structure(migrated), applied(migrated)
    with pytest.raises(AnotherVersion) as refused:
        migrate(migrated)
    assert re.match(r"TRUNKLINE_OWNER_URL \(\S+\) " + re.escape(NOT_OURS), str(refused.value))
    with pytest.raises(AnotherVersion, match="TRUNKLINE_DATABASE_URL"), postgres_log(as_program(migrated)):
        pass
    assert (structure(migrated), applied(migrated)) == before


def test_the_refusal_of_a_data_directory_of_another_version_names_it() -> None:
    """Also by the program: one sentence, exit status 1, no traceback."""
    with temporary_directory() as directory:
        with embedded_postgres(directory / "postgres") as url:
            migrate(url)
            make_pre_release(url)
        with pytest.raises(AnotherVersion) as refused, open_servers(settings(), Path(directory)):
            pass
        assert str(refused.value).startswith(f"The database in {directory} {NOT_OURS}")
        assert str(refused.value).endswith("start with a new database or a new data directory.")
        program = str(Path(sys.executable).with_name("trunkline"))
        for command in ("up", "projections list"):
            arguments = [program, *command.split(), "--data", str(directory)]
            run = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert (run.returncode, run.stdout, run.stderr) == (1, "", f"{refused.value}\n"), command
