"""How fast read models catch up, rebuild, follow and answer; and that memory does not grow with the log.

Every session, the library's runner included, commits like the engine's own, without waiting for the disk, so that the
comparison is of two ways of projecting and not of committing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection as LibraryProjection
from eventsourcing.projection import ProjectionRunner
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from benchmarks.history import MASTER_KEY, history, write
from benchmarks.measure import Measure, Void, absolute, in_turn
from domain.messages import Event
from infra.event_log.log import Change, Log
from infra.event_log.mapper import PydanticMapper
from infra.event_log.postgres_recorder import PostgresRecorder, postgres_log
from infra.postgres.connections import connect
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.recorded import Cause, Recorded
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from projections.engine.batches import catch_up, project
from projections.engine.rows import stored
from projections.entitlements import ENTITLEMENTS, EntitlementRow, entitlements_of
from projections.maintenance.rebuild import rebuild
from projections.maintenance.runner import PROJECTIONS, positions, running, wait
from projections.maintenance.verify import verify

ACCOUNTS_CAUGHT_UP: Final = 120
ACCOUNTS_REBUILT: Final = 1_000
ACCOUNTS_IN_MEMORY: Final = 10_000
FIRST_SHARE: Final = 10
"""Memory is measured after a tenth of the history and after all of it."""

EVENTS_PER_S: Final = 500
WRITERS: Final = 4
SECONDS: Final = 4
LOOK_S: Final = 0.003
"""The observer's polling interval: its readings are late by at most this."""

READS: Final = 3_000
WAIT_S: Final = 600
BINARIES: Final = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))


def measures(rounds: int, done: Callable[[], object]) -> dict[str, Measure]:
    """All five measures.

    Raises:
        Void: the tables do not equal a replay.
    """
    with _server(ACCOUNTS_CAUGHT_UP) as (owner_url, url, log):
        caught_up = _catch_up(rounds, owner_url, url, log, done)
        visible = absolute([_visible_p99_ms(url, log) for _ in range(rounds)], "ms", floor=100, aim=25)
    with _server(ACCOUNTS_REBUILT) as (owner_url, url, log):
        rebuilt = _rebuild(rounds, url, log)
        read = _entitlements(rounds, owner_url, url, log)
    with _server(int(os.environ.get("BENCH_ACCOUNTS", ACCOUNTS_IN_MEMORY))) as (_, url, log):
        memory = _memory(url, log)
    return {
        "catch_up_vs_runner": caught_up,
        "rebuild_vs_copy": rebuilt,
        "visible_p99_ms": visible,
        "entitlements_p50_vs_pgbench": read,
        "memory_growth": memory,
    }


@contextmanager
def _server(accounts: int) -> Iterator[tuple[str, str, Log]]:
    """Run a server with a history of a number of accounts."""
    with temporary_directory() as directory, embedded_postgres(directory) as owner_url:
        migrate(owner_url)
        database_url = program_login(owner_url)
        admit(owner_url, database_url)
        with connect(owner_url, "trunkline") as owner, postgres_log(database_url, master_key=MASTER_KEY) as log:
            write(database_url, log, history(accounts, seed=1))
            owner.execute("VACUUM ANALYZE log.events")
            owner.execute("ALTER DATABASE trunkline SET synchronous_commit = off")
            yield owner_url, database_url, log


def _verified(database_url: str, log: Log, names: Sequence[str] = ()) -> None:
    for projection in PROJECTIONS:
        if not names or projection.name in names:
            found = verify(database_url, log, projection)
            if not found.ok or found.position != log.head():
                raise Void(f"{projection.name} does not equal a replay")


# --- catching up


class _OurLog(Application[str]):
    """Our log as an application of the library."""

    database_url = ""

    def construct_mapper(self) -> Mapper[str]:
        return PydanticMapper(None)

    def construct_recorder(self) -> PostgresRecorder:
        return PostgresRecorder(self.database_url, master_key=MASTER_KEY)


class _View(PostgresTrackingRecorder):
    """The entitlements table, kept the library's way: each event with its tracking in one transaction."""

    def save(self, recorded: Recorded, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            conn: Any = cursor.connection
            project(conn, ENTITLEMENTS, [recorded])


class _Entitlements(LibraryProjection[_View]):
    name = "entitlements"
    topics = tuple(sorted(ENTITLEMENTS.topics))

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:  # noqa: ANN401 - a `Recorded`
        self.view.save(domain_event, tracking)


def _catch_up(rounds: int, owner_url: str, database_url: str, log: Log, done: Callable[[], object]) -> Measure:
    """The real entitlements fold over one history, from the start: our engine and the library's runner."""
    place = conninfo_to_dict(owner_url)
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(place["dbname"]),
        "POSTGRES_HOST": str(place["host"]),
        "POSTGRES_PORT": str(place["port"]),
        "POSTGRES_USER": str(place["user"]),
        "POSTGRES_PASSWORD": str(place["password"]),
    }
    _OurLog.database_url = database_url
    replayed = {row.key(): row for row in ENTITLEMENTS.folded(log.history()).of(EntitlementRow)}
    last = max(event.position for event in log.history() if type(event.event) in ENTITLEMENTS.kinds)

    def checked(conn: Connection[Any], took_s: float) -> float:
        if {row.key(): row for row in stored(conn, EntitlementRow)} != replayed:
            raise Void("the entitlements table does not equal a replay")
        return log.head() / took_s

    def ours() -> float:
        with connect(database_url) as conn:
            _emptied(owner_url)
            begun = time.perf_counter()
            while catch_up(conn, log, ENTITLEMENTS)[1]:
                continue
            return checked(conn, time.perf_counter() - begun)

    def theirs() -> float:
        with connect(owner_url, "trunkline") as conn:
            _emptied(owner_url)
            begun = time.perf_counter()
            with ProjectionRunner(
                application_class=_OurLog, projection_class=_Entitlements, view_class=_View, env=env
            ) as runner:
                runner.wait(last, timeout=WAIT_S)
                took_s = time.perf_counter() - begun
            return checked(conn, took_s)

    return in_turn(rounds, ours, theirs, done, floor=25, aim=100)


def _emptied(owner_url: str) -> None:
    with connect(owner_url, "trunkline") as owner:
        owner.execute("DROP TABLE IF EXISTS public.entitlements_tracking")
        owner.execute("TRUNCATE read.entitlements")
        owner.execute("DELETE FROM read.positions WHERE name = 'entitlements'")


# --- rebuilding


def _rebuild(rounds: int, database_url: str, log: Log) -> Measure:
    """A rebuild of all read models, indexes and swap included; the baseline is a raw copy of the same log rows."""

    def ours() -> float:
        begun = time.perf_counter()
        rebuild(database_url, log, PROJECTIONS)
        return log.head() / (time.perf_counter() - begun)

    def copied() -> float:
        with connect(database_url) as conn:
            begun, size = time.perf_counter(), 0
            with conn.cursor().copy("COPY (SELECT * FROM log.events ORDER BY position) TO STDOUT") as copy:
                for block in copy:
                    size += len(block)
            if not size:
                raise Void("nothing was copied")
            return log.head() / (time.perf_counter() - begun)

    measure = in_turn(rounds, ours, copied, lambda: None, floor=0.05, aim=0.25)
    _verified(database_url, log)
    return measure


# --- being current


def _run_all(database_url: str, pipe: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with postgres_log(database_url, master_key=MASTER_KEY) as log, running(database_url, log):
        pipe.send("runs")
        pipe.recv()


def _visible_p99_ms(database_url: str, log: Log) -> float:
    """The time from an append's return until all read models show it, under load: the 99th percentile in ms."""
    ours, child = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_run_all, args=(database_url, child), daemon=True)
    process.start()
    ours.recv()
    with connect(database_url) as conn:
        if not wait(conn, log.head(), WAIT_S):
            raise Void("the read models did not catch up")
        appended, seen = dict[int, float](), list[tuple[int, float]]()
        ended = threading.Event()
        observer = threading.Thread(target=_observe, args=(conn, seen, ended))
        observer.start()
        writers = [threading.Thread(target=_append_on, args=(log, number, appended)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        with connect(database_url) as waiter:
            if not wait(waiter, log.head(), WAIT_S):
                raise Void("the read models did not reach the end of the log")
        time.sleep(0.05)
        ended.set()
        observer.join()
    ours.send("end")
    process.join()
    latencies, at = [], 0
    for position in sorted(appended):
        while seen[at][0] < position:
            at += 1
        latencies.append(max(0.0, seen[at][1] - appended[position]) * 1e3)
    if len(latencies) < EVENTS_PER_S * SECONDS * 0.9:
        raise Void("the writers did not reach the event rate")
    _verified(database_url, log, ["orders", "timeline"])
    return quantiles(latencies, n=100)[98]


def _observe(conn: Connection[Any], seen: list[tuple[int, float]], ended: threading.Event) -> None:
    while not ended.is_set():
        position = min(positions(conn).values())
        seen.append((position, time.perf_counter()))
        time.sleep(LOOK_S)


def _append_on(log: Log, number: int, appended: dict[int, float]) -> None:
    """One of the writers: one event per beat, without a pause if it lags behind."""
    beat_s = WRITERS / EVENTS_PER_S
    begun, events = time.perf_counter(), _orders(log)
    unit = f"{begun:.6f}".replace(".", "-")
    for n in range(int(SECONDS / beat_s)):
        time.sleep(max(0.0, begun + n * beat_s - time.perf_counter()))
        order_id = f"order-{number}-{unit}-{n}"
        event = events[n % len(events)].model_copy(update={"order_id": order_id})
        cause = Cause("system:benchmark", "benchmark")
        change = Change(f"order-{order_id}", 0, [event])
        (recorded,) = log.append([change], account_id="account-000001", cause=cause, at=event.requested_at)
        appended[recorded.position] = time.perf_counter()


def _orders(log: Log) -> list[Any]:
    found: list[Event] = [e.event for e in log.of_account("account-000001")]
    return [event for event in found if event.TOPIC == "order.ExpansionRequested.v1"]


# --- reading


def _entitlements(rounds: int, owner_url: str, database_url: str, log: Log) -> Measure:
    """The median time of one account's entitlements query, through Python like the handlers, and through pgbench."""
    accounts = [f"account-{number:06d}" for number in range(ACCOUNTS_REBUILT)]
    with connect(database_url) as conn:
        account = accounts[7]
        if {row.key(): row for row in stored(conn, EntitlementRow, account_id=account)} != {
            row.key(): row for row in ENTITLEMENTS.as_of(log, account, log.head()).of(EntitlementRow)
        }:
            raise Void("the entitlements of an account do not equal a replay")

    def ours() -> float:
        with connect(database_url) as conn:
            took = []
            for n in range(READS):
                begun = time.perf_counter()
                answer = entitlements_of(conn, accounts[n * 7 % len(accounts)])
                took.append(time.perf_counter() - begun)
                if not answer:
                    raise Void("an account has no entitlements")
        return median(took) * 1e6

    return in_turn(rounds, ours, lambda: _pgbench_p50_us(owner_url), lambda: None, floor=2, aim=1.3, unit="us")


def _pgbench_p50_us(owner_url: str) -> float:
    place = {name: str(value) for name, value in conninfo_to_dict(owner_url).items()}
    columns = ", ".join(EntitlementRow.columns())
    with TemporaryDirectory() as directory:
        script = Path(directory) / "read.sql"
        script.write_text(
            f"\\set n random(0, {ACCOUNTS_REBUILT - 1})\n"
            f"SELECT {columns} FROM read.entitlements WHERE account_id = 'account-' || lpad((:n)::text, 6, '0') "
            "ORDER BY package_id, service;\n",
            encoding="utf-8",
        )
        where = ["-h", place["host"], "-p", place["port"], "-U", place["user"], place["dbname"]]
        what = ["-M", "prepared", "-n", "-c", "1", "-t", str(READS), "-f", str(script), "-l", "--log-prefix", "took"]
        subprocess.run(  # noqa: S603 - the server's own binary
            [str(BINARIES / "pgbench"), *what, *where],
            cwd=directory,
            env={**os.environ, "PGPASSWORD": place["password"]},
            check=True,
            capture_output=True,
        )
        (took,) = Path(directory).glob("took.*")
        return median(float(line.split()[2]) for line in took.read_text(encoding="utf-8").splitlines())


# --- memory


def _memory(database_url: str, log: Log) -> Measure:
    """The memory of all projections and the server after a long history, compared with after a tenth of it."""
    head = log.head()
    ours, child = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_project_all, args=(database_url, head, child), daemon=True)
    process.start()
    used = []
    for _ in range(2):
        ours.recv()
        used.append(_held_by(process.pid or 0))
        ours.send("on")
    process.join()
    with connect(database_url) as conn:
        if set(positions(conn).values()) != {head}:
            raise Void("the read models did not reach the end of the log")
    _verified(database_url, log, ["entitlements"])
    first, whole = used
    ratio = whole / first
    return Measure(whole / 2**20, first / 2**20, "MiB", ratio, (ratio, ratio), 1.2, 1.05)


def _project_all(database_url: str, head: int, pipe: Pipe) -> None:
    with postgres_log(database_url, master_key=MASTER_KEY) as log, connect(database_url) as conn:
        for upto in (head // FIRST_SHARE, head):
            for projection in PROJECTIONS:
                while catch_up(conn, log, projection, upto=upto)[1]:
                    continue
            pipe.send(upto)
            pipe.recv()


def _held_by(pid: int) -> int:
    """Private memory of the projecting process and the server's processes, in bytes.

    The server's shared buffers have a fixed size and only fill up, so they are left out.
    """
    everybody = [psutil.Process(pid), *psutil.Process().children(recursive=True)]
    servers = [p for p in everybody if p.pid == pid or p.name() == "postgres"]
    return sum(process.memory_full_info().uss for process in {p.pid: p for p in servers}.values())
