"""A history of a dozen accounts, with replay parts small enough that there are several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from benchmarks.history import history, write
from domain.messages import Event
from infra.event_log.log import Change, Log
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connect
from projections.maintenance import replay
from projections.maintenance.runner import PROJECTIONS, bring_up_to_date
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW
from tests.support.given_projection import CAUSE

WELL_S = 30.0
each_projection = pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PART_EVENTS", 200)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    with connect(database_url) as conn:
        yield conn


@pytest.fixture(scope="module")
def dozen(servers: ServerAddresses, template: str) -> Iterator[str]:
    """The name of a database with a history of a dozen accounts and its read models."""
    with fresh_database(servers, template) as owner_url:
        url = as_program(owner_url)
        with postgres_log(url, master_key=MASTER_KEY) as log:
            write(url, log, history(12, seed=1))
            assert bring_up_to_date(url, log, WELL_S)
        yield str(conninfo_to_dict(owner_url)["dbname"])


@pytest.fixture
def copy_of_dozen(servers: ServerAddresses, dozen: str) -> Iterator[str]:
    """A copy of that database, with its owner's login."""
    with fresh_database(servers, dozen) as url:
        yield url


@pytest.fixture
def log(postgres: Log) -> Log:
    """The log of that copy."""
    return postgres


def append(log: Log, stream: str, *events: Event) -> int:
    change = Change(stream, len(log.load(stream)), events)
    return log.append([change], account_id="acme", cause=CAUSE, at=NOW)[-1].position


def tables_in(conn: Connection[Any], *schemas: str) -> set[str]:
    found = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = ANY(%s)", (list(schemas),))
    return {row["tablename"] for row in found}


@contextmanager
def meanwhile(does: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Repeat an action in a thread while the context lasts, with pauses for others."""
    ended, wrong = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not ended.wait(0.005):
                does()
        except BaseException as error:  # noqa: BLE001 - reported to the test
            wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield wrong
    finally:
        ended.set()
        thread.join()
