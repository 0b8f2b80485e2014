"""The schema: migrated by many at once, all or nothing, the same as in the files, and never that of another version."""

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
from tests.support.databases import ServerPlaces, as_program, fresh_database

FILES = [*migrations(), *definitions()]


@pytest.fixture
def empty_database(places: ServerPlaces) -> Iterator[str]:
    """A database that was never migrated."""
    with fresh_database(places) as url:
        yield url


@pytest.fixture
def migrated(empty_database: str) -> str:
    """A database that was migrated a moment ago, and has no rows."""
    migrate(empty_database)
    admit(empty_database, as_program(empty_database))
    return empty_database


def asked(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return [value for (value,) in conn.execute(query.encode()).fetchall()]


def applied(url: str) -> list[str]:
    return asked(url, "SELECT name FROM public.trunkline_migrations")


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
        return tables(conn), asked(url, FUNCTIONS), asked(url, VIEWS)


# --- the files are what runs ---------------------------------------------------------------------------------------


def test_each_function_and_each_view_has_one_file_of_its_name(migrated: str) -> None:
    files = [path.removesuffix(".sql").split("/") for path in definitions()]
    assert asked(migrated, FUNCTION_NAMES) == sorted(name for folder, name in files if folder == "functions")
    views = {name for folder, name in files if folder == "views"}
    assert set(asked(migrated, VIEW_NAMES)) == views - {"reporting_columns"}
    text = b"\n".join(definitions().values()).decode()
    defined = re.findall(r"^CREATE OR REPLACE (?:FUNCTION|VIEW) ([a-z_.]+)", text, re.MULTILINE)
    assert sorted(defined) == sorted(name for _, name in files if name != "reporting_columns")


def test_no_migration_defines_a_function_or_a_view() -> None:
    """Their one definition is in functions/ or views/; a migration may drop one whose arguments or columns change."""
    for name, script in migrations().items():
        assert not re.search(rb"CREATE (OR REPLACE )?(FUNCTION|VIEW)|ALTER FUNCTION", script), name


def test_a_fresh_database_has_the_functions_views_and_tables_of_the_files(migrated: str) -> None:
    before = structure(migrated)
    assert before[0] == TABLES.read_text(encoding="utf-8"), "make structure writes tables.sql"
    with psycopg.connect(migrated) as owner:
        for text in definitions().values():
            owner.execute(text)
    assert structure(migrated) == before


def test_what_was_changed_by_hand_is_seen(migrated: str) -> None:
    """Or the test above proves nothing."""
    before = structure(migrated)
    with psycopg.connect(migrated) as owner:
        owner.execute("ALTER FUNCTION log.append RESET plan_cache_mode")
        owner.execute("CREATE OR REPLACE VIEW log.history AS SELECT * FROM (TABLE log.history) AS h WHERE position > 1")
        owner.execute("ALTER TABLE read.orders ALTER COLUMN state DROP NOT NULL")
    assert [one == other for one, other in zip(structure(migrated), before, strict=True)] == [False, False, False]


# --- migrating -----------------------------------------------------------------------------------------------------


def test_migrating_twice_is_migrating_once(empty_database: str) -> None:
    assert migrate(empty_database) == FILES
    first = structure(empty_database)
    assert migrate(empty_database) == []
    assert structure(empty_database) == first
    assert sorted(applied(empty_database)) == sorted(FILES)


def test_of_eight_threads_that_migrate_at_once_exactly_one_applies_each_file(empty_database: str) -> None:
    begin = Barrier(8)

    def one() -> list[str]:
        begin.wait()
        return migrate(empty_database)

    with ThreadPoolExecutor(8) as pool:
        outcomes = [future.result() for future in [pool.submit(one) for _ in range(8)]]
    assert sorted(outcomes) == [*[[]] * 7, FILES]
    assert sorted(applied(empty_database)) == sorted(FILES)


def test_a_migration_that_fails_leaves_nothing_behind_and_can_be_tried_again(empty_database: str) -> None:
    with psycopg.connect(empty_database) as conn:
        conn.execute("CREATE SCHEMA read")  # in the way of a later file
    with pytest.raises(DatabaseUnavailable, match="already exists"):
        migrate(empty_database)
    gone = "SELECT num_nulls(to_regclass('log.events'), to_regclass('trunkline_migrations'))"
    assert asked(empty_database, gone) == [2]
    with psycopg.connect(empty_database) as conn:
        conn.execute("DROP SCHEMA read")
    assert migrate(empty_database) == FILES


def test_a_changed_definition_is_applied_alone_and_the_log_goes_on(
    migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain knows no versions: what one version of the function linked is continued by the next."""
    today = definitions()
    with postgres_log(as_program(migrated)) as log:
        log._recorder.insert_events([StoredEvent("candy-1", 1, "candy.Made.v1", b"{}")])
    changed = today | {"functions/log.append.sql": today["functions/log.append.sql"] + b"-- changed\n"}
    monkeypatch.setattr(infra.postgres.migrate, "definitions", lambda: changed)
    lacking = r"lacks functions/log\.append\.sql; set TRUNKLINE_OWNER_URL, and run trunkline migrate"
    with pytest.raises(DatabaseUnavailable, match=lacking), postgres_log(as_program(migrated)):
        pass
    assert migrate(migrated) == ["functions/log.append.sql"]
    with postgres_log(as_program(migrated)) as log:
        log._recorder.insert_events([StoredEvent("candy-1", 2, "candy.Made.v1", b"{}")])
    with auditing(as_program(migrated)) as auditor:
        assert Verifier(auditor).verify().position == 2


def test_after_a_new_migration_everything_is_defined_again(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a migration drops a view whose columns change, and says nothing of those that depend on it."""
    before = structure(migrated)
    more = migrations() | {"0999_views.sql": b"DROP VIEW reporting.orders; DROP FUNCTION log.destroy_key;"}
    monkeypatch.setattr(infra.postgres.migrate, "migrations", lambda: more)
    assert migrate(migrated) == ["0999_views.sql", *definitions()]
    assert structure(migrated) == before


# --- another version -----------------------------------------------------------------------------------------------

NOT_OURS = "was made by another version of Trunkline, and this one cannot use it: run that version if it is newer; "


def of_before_the_first_release(url: str) -> None:
    """Make a database look like one of the time before migrations were squashed."""
    with psycopg.connect(url) as owner:
        owner.execute("DROP TABLE IF EXISTS public.trunkline_migrations")
        owner.execute(
            "CREATE TABLE public.trunkline_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        owner.execute("INSERT INTO public.trunkline_migrations (name) VALUES ('0001_event_log.sql')")
        owner.execute("GRANT SELECT ON public.trunkline_migrations TO trunkline_writer")


def of_a_later_version(url: str) -> None:
    with psycopg.connect(url) as owner:
        owner.execute("INSERT INTO public.trunkline_migrations (name, sha256) VALUES ('0999_later.sql', '')")


@pytest.mark.parametrize("made", [of_before_the_first_release, of_a_later_version])
def test_a_database_of_another_version_is_refused_in_one_sentence_and_not_touched(
    migrated: str, made: Callable[[str], None]
) -> None:
    made(migrated)
    before = structure(migrated), applied(migrated)
    with pytest.raises(AnotherVersion) as refused:
        migrate(migrated)
    assert re.match(r"TRUNKLINE_OWNER_URL \(\S+\) " + re.escape(NOT_OURS), str(refused.value))
    with pytest.raises(AnotherVersion, match="TRUNKLINE_DATABASE_URL"), postgres_log(as_program(migrated)):
        pass
    assert (structure(migrated), applied(migrated)) == before


def test_a_data_directory_of_another_version_is_refused_by_its_name() -> None:
    with temporary_directory() as directory:
        with embedded_postgres(directory / "postgres") as url:
            migrate(url)
            of_before_the_first_release(url)
        with pytest.raises(AnotherVersion) as refused, open_servers(settings(), Path(directory)):
            pass
    assert str(refused.value).startswith(f"The database in {directory} {NOT_OURS}")
    assert str(refused.value).endswith("start with a new database or a new data directory.")


def test_the_command_line_refuses_a_data_directory_of_another_version() -> None:
    """From outside: one sentence, exit status 1, no traceback, whichever command meets it first."""
    program = Path(sys.executable).with_name("trunkline")
    with temporary_directory() as directory:
        with embedded_postgres(directory / "postgres") as url:
            migrate(url)
            of_before_the_first_release(url)
        for command in (("up",), ("show", "orders", "acme"), ("audit", "events")):
            arguments = [program, *command, "--data", str(directory)]
            run = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert (run.returncode, run.stdout) == (1, ""), command
            assert run.stderr.startswith(f"The database in {directory} {NOT_OURS}"), command
            assert run.stderr.count("\n") == 1, command
