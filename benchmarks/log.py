"""The event log compared with the library's stock recorder and with ``COPY``: one server, fsync on, interleaved rounds.

After each round the whole log is checked: gapless positions, no duplicates, unbroken chain.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from statistics import quantiles
from typing import Any
from uuid import UUID, uuid4

import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import ApplicationRecorder, StoredEvent
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.history import MASTER_KEY, history, write
from benchmarks.measure import Measure, Void, in_turn
from domain.allocation import ALLOCATION, AllocateCapacity, CreatePbx, GrantCapacity
from domain.messages import Decider
from domain.services import Plan
from handlers.cli.interpreter import freeze_loaded_objects
from infra.audit.auditor import Auditor, auditing
from infra.audit.hash_chain import ChainBroken, Verifier, Walk
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import PostgresRecorder, postgres_log
from infra.event_log.recorder import LogRow, as_notifications
from infra.event_log.snapshots import IMPERSONAL
from infra.event_log.unit_of_work import UnitOfWork
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.recorded import Cause, event_id
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory

WRITERS = 64
OURS_EACH = 400
STOCK_EACH = 16
ALONE = 300
CHAIN_FINER = 4
BULK = 1_000
WAL_SEGMENTS = 60
REPLAYED_ACCOUNTS = 60
COPIES = 5
COPIED = "int8 text int8 text bytea timestamptz text uuid text text text bytea"
AT = datetime(2026, 3, 2, tzinfo=UTC)
Writer = Sequence[Callable[[], object]]
"""The calls that one thread makes, in sequence."""

CAUSE = Cause("service:benchmark", "benchmark")
TOPIC = "allocation.CapacityAllocated.v1"
STATE = (
    b'{"package_id":"pkg-acme","pbx_id":"head-office","allocation_id":"minutes-000001","plan":"enterprise",'
    b'"service":"recording_minutes","quantity":300,"drawn":0}'
)


def measures(rounds: int, done: Callable[[], object]) -> dict[str, Measure]:
    """Every measure of the log.

    Raises:
        Void: the log does not equal what was appended.
    """
    with temporary_directory() as directory, embedded_postgres(directory) as owner_url, _bench(owner_url) as bench:
        freeze_loaded_objects()
        _worn_in(bench.owner)

        def checked() -> None:
            bench.check()
            done()

        return {
            pair.name: in_turn(
                rounds * pair.finer,
                pair.ours,
                pair.baseline,
                checked,
                floor=pair.floor,
                aim=pair.aim,
                unit=pair.unit,
                smaller_is_better=pair.unit == "ms",
            )
            for pair in bench.pairs()
        }


@contextmanager
def _bench(owner_url: str) -> Iterator[Bench]:
    """A log beside the stock recorder, one with a history to replay, and two that differ only in their chain."""
    with ExitStack() as stack:
        owner = stack.enter_context(psycopg.connect(owner_url, autocommit=True))
        database_url = program_login(owner_url)
        owners, logins = {}, {}
        for name in ("replayed", "chained", "unchained"):
            owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            owners[name], logins[name] = make_conninfo(owner_url, dbname=name), make_conninfo(database_url, dbname=name)
            migrate(owners[name])
        migrate(owner_url)
        admit(owner_url, database_url)
        _without_chain(owners["unchained"])
        owner.execute("CREATE SCHEMA stock")
        owner.execute("CREATE TABLE stock.copied (LIKE log.events INCLUDING ALL)")
        at = conninfo_to_dict(owner_url)
        environment = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            **{f"POSTGRES_{name.upper()}": str(at[name]) for name in ("dbname", "host", "port", "user", "password")},
            "POSTGRES_SCHEMA": "stock",
        }
        application = Application[UUID](environment)
        stack.callback(application.close)
        replayed = stack.enter_context(postgres_log(logins["replayed"], master_key=MASTER_KEY))
        write(logins["replayed"], replayed, history(REPLAYED_ACCOUNTS, seed=1))
        recorder = stack.enter_context(PostgresRecorder(database_url, master_key=MASTER_KEY))
        yield Bench(
            owner=owner,
            recorder=recorder,
            log=Log(recorder),
            application=application,
            replayed=replayed,
            raw=stack.enter_context(psycopg.connect(owners["replayed"], autocommit=True)),
            chained=stack.enter_context(PostgresRecorder(logins["chained"])),
            unchained=stack.enter_context(PostgresRecorder(logins["unchained"])),
            auditor=stack.enter_context(auditing(database_url)),
            chain_auditor=stack.enter_context(auditing(logins["chained"])),
        )


def _worn_in(owner: Connection[Any]) -> None:
    """Give the server write-ahead log segments to recycle, like one that has run for a while.

    A new server creates each segment, which takes 50 ms and blocks all appends.
    """
    owner.execute("ALTER SYSTEM SET min_wal_size = '1GB'")
    owner.execute("SELECT pg_reload_conf()")
    for _ in range(WAL_SEGMENTS):
        owner.execute("SELECT pg_logical_emit_message(false, 'benchmark', ''), pg_switch_wal()")
    owner.execute("CHECKPOINT")


def _without_chain(owner_url: str) -> None:
    """Disable a log's hash chain: each row copies the hash of the previous one."""
    with psycopg.connect(owner_url, autocommit=True) as owner:
        definition = owner.execute("SELECT pg_get_functiondef('log.append'::regproc)").fetchone()
        assert definition
        unchained, links = re.subn(r"link := sha256\(.*?\);\n", "link := link;\n", str(definition[0]), flags=re.DOTALL)
        assert links == 1, "the chaining code of log.append has changed; adapt this pattern"
        owner.execute(unchained.encode())


@dataclass(frozen=True)
class Pair:
    """One measure: ours against a baseline."""

    name: str
    ours: Callable[[], float]
    baseline: Callable[[], float]
    floor: float
    aim: float
    unit: str = "1/s"
    finer: int = 1
    """The number of shorter rounds that replace one: similar figures need more rounds to be distinguished."""


class Pool(Aggregate):
    """The same aggregate written the library's way: the units of a pool that PBXs hold."""

    @event("Granted")
    def __init__(self, quantity: int) -> None:
        self.total = quantity
        self.held: dict[str, int] = {}

    @event("Allocated")
    def allocate(self, allocation_id: str, quantity: int) -> None:
        """Allocate units to a PBX."""
        self.held[allocation_id] = quantity


@dataclass
class Bench:
    """The measurements, on one server."""

    owner: Connection[Any]
    recorder: PostgresRecorder
    log: Log
    application: Application[UUID]
    replayed: Log
    raw: Connection[Any]
    chained: PostgresRecorder
    unchained: PostgresRecorder
    auditor: Auditor
    chain_auditor: Auditor
    walk: Walk = field(default_factory=Walk)
    chain_walk: Walk = field(default_factory=Walk)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def pairs(self) -> list[Pair]:
        """All measures, with floor and aim."""
        stock = self.application.recorder
        pools, stock_pools = self._pools(), [Pool(10**9) for _ in range(WRITERS)]
        self.application.save(*stock_pools)
        return [
            Pair(
                "append_64_writers",
                lambda: rate(appends_of(self.recorder, OURS_EACH)),
                lambda: rate(appends_of(stock, STOCK_EACH, event=_stored)),
                floor=25,
                aim=60,
            ),
            Pair(
                "command_64_writers",
                lambda: rate(self._commands(pools)),
                lambda: rate(self._saves(stock_pools)),
                floor=6,
                aim=20,
            ),
            Pair(
                "append_p99_64_writers",
                lambda: p99_ms(appends_of(self.recorder, OURS_EACH)),
                lambda: p99_ms(appends_of(stock, STOCK_EACH, event=_stored)),
                floor=15,
                aim=50,
                unit="ms",
            ),
            Pair(
                "append_1_writer",
                lambda: rate(appends_of(self.recorder, ALONE, 1)),
                lambda: rate(appends_of(stock, ALONE, 1, event=_stored)),
                floor=1.5,
                aim=2.5,
            ),
            Pair("bulk_1000_vs_copy", self._bulk, self._copy, floor=0.4, aim=0.8),
            Pair(
                "chain_cost",
                lambda: rate(appends_of(self.chained, OURS_EACH // CHAIN_FINER)),
                lambda: rate(appends_of(self.unchained, OURS_EACH // CHAIN_FINER)),
                floor=0.9,
                aim=0.97,
                finer=CHAIN_FINER,
            ),
            Pair("replay_vs_copy", self._replay, self._copy_out, floor=0.1, aim=0.3),
        ]

    def check(self) -> None:
        """Check that the log has every position and every version once, and that its chain is intact.

        Raises:
            Void: a check failed.
        """
        try:
            self.walk = Verifier(self.auditor, walk=self.walk).verify()
            self.chain_walk = Verifier(self.chain_auditor, walk=self.chain_walk).verify()
        except ChainBroken as broken:
            raise Void(str(broken)) from broken

    # --- one append, and one command

    def _pools(self) -> list[str]:
        """A pool with a PBX for each writer."""
        packages = [f"pkg-{number}" for number in range(WRITERS)]
        for package in packages:
            work = UnitOfWork(self.log)
            who = {"package_id": package, "account_id": f"account-{package}"}
            quantities = {"extensions": 100, "recording_minutes": 1_000_000}
            work.do(ALLOCATION, package, GrantCapacity(at=AT, **who, grant_id=package, quantities=quantities))
            office = CreatePbx(at=AT, **who, pbx_id="office", name="Office", plan=Plan.ENTERPRISE, extensions=10)
            work.do(ALLOCATION, package, office)
            work.commit(account_id=who["account_id"], cause=CAUSE, at=AT)
        return packages

    def _commands(self, packages: Sequence[str]) -> list[Writer]:
        """Commands, already parsed: the measure is load, decide and append."""

        def do(command: AllocateCapacity) -> object:
            work = UnitOfWork(self.log, use_cache=True)
            work.do(ALLOCATION, command.package_id, command)
            return work.commit(account_id=command.account_id, cause=CAUSE, at=AT)

        def command(package: str) -> AllocateCapacity:
            return AllocateCapacity(
                at=AT,
                package_id=package,
                account_id=f"account-{package}",
                pbx_id="office",
                allocation_id=f"minutes-{next(self.numbers)}",
                service="recording_minutes",
                quantity=1,
            )

        return [[partial(do, command(package)) for _ in range(warmed_up(OURS_EACH))] for package in packages]

    def _saves(self, pools: Sequence[Pool]) -> list[Writer]:
        def save(pool: Pool) -> object:
            pool.allocate(f"minutes-{next(self.numbers)}", 1)
            return self.application.save(pool)

        return [[partial(save, pool)] * warmed_up(STOCK_EACH) for pool in pools]

    # --- many events at once

    def _bulk(self) -> float:
        """One append of a thousand events to one stream, five times."""
        batches = self._batches()
        begun = time.perf_counter()
        for batch in batches:
            self.recorder.insert_events(as_notifications(batch))
        return 5 * BULK / (time.perf_counter() - begun)

    @staticmethod
    def _batches() -> list[list[LogRow]]:
        streams = [f"allocation-{uuid4()}" for _ in range(5)]
        return [[_row(stream, n) for n in range(1, BULK + 1)] for stream in streams]

    def _copy(self) -> float:
        """The same rows with binary ``COPY`` into a table with the same columns, constraints and indexes."""
        batches = self._batches()
        begun = time.perf_counter()
        for batch in batches:
            with self.owner.cursor().copy("COPY stock.copied FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(COPIED.split())
                for row in batch:
                    copy.write_row(
                        (
                            next(self.numbers),
                            row.originator_id,
                            row.originator_version,
                            row.topic,
                            row.state,
                            row.recorded_at,
                            row.account_id,
                            event_id(row.originator_id, row.originator_version),
                            row.correlation_id,
                            row.causation_id,
                            row.actor,
                            bytes(32),
                        )
                    )
        return 5 * BULK / (time.perf_counter() - begun)

    # --- reading it all

    def _replay(self) -> float:
        """Decode, validate and fold every event."""
        deciders: dict[str, Decider[Any, Any, Any]] = {decider.category: decider for decider in IMPERSONAL}
        states: dict[str, Any] = {}
        begun = time.perf_counter()
        events = 0
        for recorded in self.replayed.history():
            events += 1
            decider = deciders.get(recorded.stream.partition("-")[0])
            if decider is not None:
                state = states.get(recorded.stream, decider.initial)
                states[recorded.stream] = decider.evolve(state, recorded.event)
        return events / (time.perf_counter() - begun)

    def _copy_out(self) -> float:
        """The same raw rows, repeated until it takes about as long."""
        begun = time.perf_counter()
        rows = 0
        with self.raw.cursor() as cursor:
            for _ in range(COPIES):
                with cursor.copy("COPY log.events TO STDOUT") as copy:
                    while copy.read():
                        pass
                rows += cursor.rowcount
        return rows / (time.perf_counter() - begun)


def _row(stream: str, version: int) -> LogRow:
    return LogRow(stream, version, TOPIC, STATE, 0, AT, "account-1", CAUSE.correlation_id, None, CAUSE.actor)


def _stored() -> StoredEvent:
    """An event as the library's mapper passes it to its recorder."""
    return StoredEvent(uuid4(), 1, TOPIC, STATE)


def _own() -> LogRow:
    """An event as our mapper passes it to our recorder, with its metadata."""
    return _row(f"allocation-{uuid4()}", 1)._replace(recorded_at=datetime.now(UTC))


def warmed_up(times: int) -> int:
    """The number of calls by a writer to measure ``times`` of them: the first ones warm up its thread."""
    return times + times // 10


def appends_of(
    recorder: ApplicationRecorder, times: int, writers: int = WRITERS, event: Callable[[], LogRow | StoredEvent] = _own
) -> list[Writer]:
    """Writers that repeatedly append one event to a new stream."""
    append: Callable[[Any], object] = recorder.insert_events
    return [[partial(append, [event()]) for _ in range(warmed_up(times))] for _ in range(writers)]


def _timed(writers: Sequence[Writer]) -> tuple[float, list[float]]:
    """Run all writers concurrently. Returns the seconds in total and of each call, without the warm-up."""
    took: list[float] = []
    begin = threading.Barrier(len(writers) + 1)

    def write_on(writer: Writer) -> None:
        before = len(writer) // 11
        for work in writer[:before]:
            work()
        begin.wait()
        for work in writer[before:]:
            begun = time.perf_counter()
            work()
            took.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=write_on, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    begin.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    all_of_it = time.perf_counter() - begun
    if len(took) != sum(len(writer) - len(writer) // 11 for writer in writers):
        raise Void("a writer failed")
    return all_of_it, took


def rate(writers: Sequence[Writer]) -> float:
    """The calls per second of all writers, run concurrently."""
    all_of_it, took = _timed(writers)
    return len(took) / all_of_it


def p99_ms(writers: Sequence[Writer]) -> float:
    """The 99th percentile of a call in milliseconds, with all writers run concurrently."""
    return quantiles(_timed(writers)[1], n=100)[98] * 1000
