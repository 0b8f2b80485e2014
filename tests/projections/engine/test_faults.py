"""Real faults: a read model that dies within a batch, slow transactions, a process that dies.

Events that cannot be folded are in `test_poison`, rebuilds under live writes in `test_rebuild`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from infra.event_log.append import Append, appended
from infra.event_log.log import Change, Log
from infra.event_log.recorder import LogRow
from infra.postgres.connections import PROJECTOR, WRITER, connect
from infra.postgres.positions import position_of
from projections.engine.batches import catch_up
from projections.engine.projection import Projection
from projections.engine.rows import stored
from projections.maintenance.runner import PROJECTIONS, positions, running, statuses, wait
from projections.maintenance.verify import verify
from projections.orders import OrderRow
from tests.projections.conftest import empty, laid
from tests.projections.engine.test_batches import Crash, by_table, fused, live, replayed
from tests.projections.maintenance.test_runner import WELL_S, append, eventually
from tests.support.examples import NOW, placed, requested
from tests.support.given_domain import but
from tests.support.given_projection import CAUSE
from tests.support.histories import ACCOUNTS, told

pytestmark = pytest.mark.long


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    with connect(database_url) as conn:
        yield conn


# --- death within a batch -------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_after_random_crashes_the_tables_equal_a_replay_and_as_of_equals_what_they_showed(
    tables: Connection[Any], tables_url: str, tables_owner: Connection[Any], data: st.DataObject
) -> None:
    """Each read model dies at random statements of batches of random sizes, half of the time with its connection."""
    seed = data.draw(st.integers(1, 12), label="seed")
    random = Random(data.draw(st.integers(0, 2**32), label="crashes"))  # noqa: S311 - repeatable
    empty(tables_owner)
    log = laid(tables_owner, told(seed, 250))
    history = list(log.history())
    for projection in PROJECTIONS:
        conn, crashed = connect(tables_url), 0
        while (position := position_of(tables, projection.name)) < log.head():
            cut = random.random() < 0.5
            with fused(conn, conn.close if cut else lambda: None) as fuse:
                fuse.renew(random.choice([None, None, random.randint(1, 12)]))
                try:
                    catch_up(conn, log, projection, random.choice([1, 10, 60, 500]))
                except (Crash, psycopg.OperationalError):
                    crashed += 1
            if conn.closed:
                conn = connect(tables_url)
            if random.random() < 0.1:
                assert_as_of_shows_the_same(tables, log, projection, position_of(tables, projection.name))
        conn.close()
        assert position <= log.head()
        assert live(tables, projection) == replayed(projection, history)


def assert_as_of_shows_the_same(conn: Connection[Any], log: Log, projection: Projection, position: int) -> None:
    for account_id in ACCOUNTS:
        as_of = projection.as_of(log, account_id, position)
        assert by_table(projection, as_of.of) == live(conn, projection, account_id=account_id)


# --- slow transactions ----------------------------------------------------------------------------------------------


def appended_by_hand(conn: Connection[Any], order_id: str) -> None:
    """Append within an open transaction, as a slow writer would."""
    event = but(requested, order_id=order_id)
    row = LogRow(order_id, 1, event.TOPIC, event.model_dump_json().encode(), 0, NOW, "acme", "wish", None, "admin:ada")
    appended(conn, [Append([row])])


def test_a_long_transaction_that_commits_last_is_seen_by_every_reader(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    """Later appends wait for it, so no reader passes a position that is not filled yet."""
    append(postgres, "order-1", requested)
    with running(database_url, postgres), connect(database_url, WRITER) as slow:
        assert wait(conn, 1, WELL_S)
        with slow.transaction():
            appended_by_hand(slow, "order-slow")
            late = threading.Thread(target=append, args=(postgres, "order-late", but(requested, order_id="order-late")))
            late.start()
            late.join(timeout=0.7)  # meanwhile, every reader has polled
            assert late.is_alive()
            assert set(positions(conn).values()) == {1}
            assert postgres.head() == 1
        late.join(timeout=WELL_S)
        assert wait(conn, 3, WELL_S)
        assert [row.order_id for row in stored(conn, OrderRow)] == ["order-1", "order-late", "order-slow"]
        assert [status.ok for status in statuses(conn)] == [True] * len(PROJECTIONS)
    assert all(verify(database_url, postgres, projection, processes=1).ok for projection in PROJECTIONS)


@pytest.mark.parametrize("idle_in", ["a reader of the views", "a writer that holds the log's end"])
def test_a_session_idle_in_a_transaction_makes_no_reader_skip_and_ends_by_its_timeout(
    postgres: Log, database_url: str, conn: Connection[Any], idle_in: str
) -> None:
    """The session timeout (30 s in production, 1 s here) releases its locks."""
    append(postgres, "order-1", requested)
    role = WRITER if "writer" in idle_in else PROJECTOR
    with running(database_url, postgres), closing(connect(database_url, role)) as idle:
        assert wait(conn, 1, WELL_S)
        backend = idle.info.backend_pid
        idle.execute("SET idle_in_transaction_session_timeout = '1s'")
        idle.execute("BEGIN")
        if "writer" in idle_in:
            appended_by_hand(idle, "order-idle")
        else:
            idle.execute("SELECT 1")
        append(postgres, "order-2", but(requested, order_id="order-2"))
        assert wait(conn, 2, WELL_S)
        assert eventually(lambda: not is_there(conn, backend))
    assert [row.order_id for row in stored(conn, OrderRow)] == ["order-1", "order-2"]
    assert [event.position for event in postgres.history()] == [1, 2]


def is_there(conn: Connection[Any], backend: int) -> bool:
    return conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (backend,)).fetchone() is not None


def test_a_projection_that_falls_behind_reports_its_lag(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    for n in range(1, 4):
        append(postgres, f"order-{n}", but(requested, order_id=f"order-{n}"))
    assert [(status.lag, status.running) for status in statuses(conn)] == [(3, False)] * len(PROJECTIONS)


# --- the death of a process ----------------------------------------------------------------------------------------

RUNS_ALL = """
import signal, sys
from infra.event_log.postgres_recorder import postgres_log
from projections.maintenance.runner import running

with postgres_log(sys.argv[1]) as log, running(sys.argv[1], log):
    print("runs", flush=True)
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_process_dies_another_takes_over_within_five_seconds(
    postgres: Log, database_url: str, conn: Connection[Any], how: signal.Signals
) -> None:
    def started() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", RUNS_ALL, database_url], stdout=subprocess.PIPE, text=True)

    with started() as first, started() as second:
        try:
            for process in (first, second):
                assert process.stdout is not None
                assert process.stdout.readline() == "runs\n"
            append(postgres, "order-1", requested)
            assert wait(conn, 1, WELL_S)
            assert eventually(lambda: all(status.running for status in statuses(conn)))
            first.send_signal(how)
            first.wait(timeout=WELL_S)
            died = time.monotonic()
            append(postgres, "order-1", placed)
            assert wait(conn, 2, WELL_S)
            assert time.monotonic() - died < 5
            assert eventually(lambda: all(status.running for status in statuses(conn)))
        finally:
            first.kill()
            second.kill()
    assert [row.state for row in stored(conn, OrderRow)] == ["placed"]


def test_a_writer_that_waits_for_another_process_to_project_reads_its_own_writes(
    postgres: Log, database_url: str, conn: Connection[Any]
) -> None:
    with subprocess.Popen([sys.executable, "-c", RUNS_ALL, database_url], stdout=subprocess.PIPE, text=True) as other:
        try:
            for n in range(1, 6):
                change = Change(f"order-{n}", 0, [but(requested, order_id=f"order-{n}")])
                position = postgres.append([change], account_id="acme", cause=CAUSE, at=NOW)[-1].position
                assert wait(conn, position, WELL_S)
                assert len(stored(conn, OrderRow)) == n
        finally:
            other.kill()
