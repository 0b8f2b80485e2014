"""Group commit: an append fails alone, an acknowledged append is stored, and one whose reply was lost is recognised."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from threading import Thread, current_thread
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from eventsourcing.persistence import DataError, IntegrityError, OperationalError, StoredEvent, Tracking
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import infra.event_log.group_commit
import infra.event_log.postgres_recorder
from infra.event_log.append import Append, appended
from infra.event_log.group_commit import GroupCommit, _compatible
from infra.event_log.log import Log, LogUnavailable
from infra.event_log.postgres_recorder import PostgresRecorder
from infra.event_log.recorder import AlreadyHandled, InboxEntry, MessageIdReused
from infra.postgres.connections import WRITER, connect
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.servers.embedded_postgres import embedded_postgres
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy
from tests.support.examples import NOW
from tests.support.given_projection import CAUSE

REPOSITORY = Path(__file__).parents[3]


def stored(stream: str, *versions: int, state: bytes = b"{}") -> list[StoredEvent]:
    return [StoredEvent(stream, version, "candy.Made.v1", state) for version in versions]


def message(message_id: str, body: bytes = b"body") -> InboxEntry:
    return InboxEntry(message_id, hashlib.sha256(body).digest())


@pytest.fixture
def recorder(database_url: str) -> Iterator[PostgresRecorder]:
    with PostgresRecorder(database_url) as recorder:
        yield recorder


def append_in(conn: Connection[Any], append: Append) -> None:
    """Append in the open transaction, which then holds the lock on the head."""
    appended(conn, [append])


@contextmanager
def appends_blocked(recorder: PostgresRecorder, database_url: str) -> Iterator[Future[Sequence[int]]]:
    """Block all appends, so that those submitted meanwhile form one group. Yields the append that was first."""
    with ThreadPoolExecutor(1) as pool, connect(database_url, WRITER) as conn, conn.transaction():
        append_in(conn, Append([]))
        blocker = pool.submit(recorder.insert_events, stored("candy-blocker", 1))
        while not blocker.done() and not conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            time.sleep(0.001)
        yield blocker


def until_submitted(recorder: PostgresRecorder, count: int) -> None:
    """Wait until ``count`` appends wait for the one in progress."""
    deadline = time.monotonic() + 20
    while recorder._writer._asked.qsize() < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- one group -----------------------------------------------------------------------------------------------------


def test_in_a_group_only_the_append_with_a_version_conflict_fails(
    recorder: PostgresRecorder, database_url: str
) -> None:
    recorder.insert_events(stored("candy-0", 1))
    with ThreadPoolExecutor(16) as pool:
        with appends_blocked(recorder, database_url) as first:
            futures = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1, 2)) for n in range(15)]
            until_submitted(recorder, len(futures))
        assert first.result() == [2]
        with pytest.raises(IntegrityError, match="candy-0"):
            futures[0].result()
        positions = [future.result() for future in futures[1:]]
    assert sorted(position for both in positions for position in both) == list(range(3, 31))
    assert all(second == one + 1 for one, second in positions)


def test_a_row_at_a_future_position_is_not_reported_as_a_version_conflict(
    recorder: PostgresRecorder, owner_url: str
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("CREATE TEMPORARY TABLE row AS SELECT * FROM log.events")
        owner.execute("UPDATE row SET position = 2, stream = 'candy-forged'")
        owner.execute("INSERT INTO log.events SELECT * FROM row")
    with pytest.raises(DataError, match="events_pkey"):
        recorder.insert_events(stored("candy-2", 1))


def test_in_a_group_only_the_append_that_the_database_cannot_store_fails(
    recorder: PostgresRecorder, database_url: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        with appends_blocked(recorder, database_url) as first:
            good = pool.submit(recorder.insert_events, stored("candy-good", 1))
            bad = pool.submit(recorder.insert_events, stored("candy-\x00", 1))
            better = pool.submit(recorder.insert_events, stored("candy-better", 1))
            until_submitted(recorder, 3)
        with pytest.raises(DataError, match="0x00"):
            bad.result()
        assert sorted([*first.result(), *good.result(), *better.result()]) == [1, 2, 3]


def test_in_a_group_each_failure_has_its_own_reason_and_the_others_are_stored_once(
    recorder: PostgresRecorder, database_url: str
) -> None:
    recorder.insert_events(stored("candy-old", 1))
    with ThreadPoolExecutor(5) as pool:
        with appends_blocked(recorder, database_url) as first:
            streams = [("candy-old", 1), ("candy-good", 1), ("candy-negative", -1), ("candy-better", 1)]
            futures = []
            for stream, version in streams:
                futures.append(pool.submit(recorder.insert_events, stored(stream, version)))
                until_submitted(recorder, len(futures))
        assert first.result() == [2]
        with pytest.raises(IntegrityError, match="candy-old"):
            futures[0].result()
        with pytest.raises(DataError, match="events_version_check"):
            futures[2].result()
        assert [futures[n].result() for n in (1, 3)] == [[3], [4]]


def test_in_a_group_only_the_append_whose_stream_name_is_too_long_for_an_index_fails(
    recorder: PostgresRecorder, database_url: str
) -> None:
    long = "".join(secrets.token_hex(8000))
    with ThreadPoolExecutor(3) as pool:
        with appends_blocked(recorder, database_url) as first:
            good, bad = (pool.submit(recorder.insert_events, stored(name, 1)) for name in ("candy-good", long))
            until_submitted(recorder, 2)
        with pytest.raises(DataError, match="index row requires"):
            bad.result()
        assert sorted([*first.result(), *good.result()]) == [1, 2]


def test_a_group_is_no_larger_than_a_statement_may_be(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.event_log.group_commit.GROUP_BYTES_MAX", 1000)
    sizes: list[int] = []

    def counted(conn: Connection[Any], group: Sequence[Append]) -> Any:  # noqa: ANN401 - the result is passed on
        sizes.append(len(group))
        return appended(conn, group)

    monkeypatch.setattr("infra.event_log.group_commit.appended", counted)
    with ThreadPoolExecutor(4) as pool:
        with appends_blocked(recorder, database_url):
            futures = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1, state=bytes(600))) for n in range(4)]
            until_submitted(recorder, 4)
        assert sorted(position for future in futures for position in future.result()) == [2, 3, 4, 5]
    assert sizes[-2:] == [2, 2]
    monkeypatch.setattr("infra.event_log.append.APPEND_BYTES_MAX", 1000)
    with pytest.raises(DataError, match=r"has 1,\d\d\d bytes; it may have at most 1,000"):
        recorder.insert_events(stored("candy-large", 1, state=bytes(1000)))


def test_an_append_that_cannot_be_encoded_fails_before_it_joins_a_group(recorder: PostgresRecorder) -> None:
    with pytest.raises(DataError, match="surrogates"):
        recorder.insert_events(stored("candy-\ud800", 1))
    with pytest.raises(DataError, match="cannot"):
        recorder.insert_events(stored("candy-huge", 2**63))


def test_appends_to_the_same_stream_or_of_the_same_message_never_share_a_group() -> None:
    one, same, other = Append(stored("candy-1", 1)), Append(stored("candy-1", 2)), Append(stored("candy-2", 1))
    both = Append([*stored("candy-2", 2), *stored("candy-3", 1)])
    after_both = Append(stored("candy-3", 2))
    assert _compatible([one, same, other, both, after_both]) == ([one, other], [same, both, after_both])
    delivered, redelivered = Append([], message("m-1")), Append([], message("m-1"))
    assert _compatible([delivered, redelivered]) == ([delivered], [redelivered])


def test_the_versions_of_a_stream_start_at_1_without_gaps(recorder: PostgresRecorder) -> None:
    for gap in ([3], [1, 3], [1, 1], [2, 1]):
        with pytest.raises(IntegrityError):
            recorder.insert_events(stored("candy-gap", *gap))
    recorder.insert_events(stored("candy-gap", 1, 2))
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-gap", 4))
    assert recorder.max_notification_id() == 2


def test_a_closed_recorder_refuses_appends(database_url: str) -> None:
    with PostgresRecorder(database_url) as recorder:
        recorder.insert_events(stored("candy-1", 1))
    with pytest.raises(OperationalError, match="closed"):
        recorder.insert_events(stored("candy-1", 2))


def test_an_append_submitted_while_the_writer_closes_is_refused_without_waiting(database_url: str) -> None:
    opened: list[Connection[Any]] = []

    def connected() -> Connection[Any]:
        opened.append(connect(database_url, WRITER))
        return opened[-1]

    writer = GroupCommit(connected, lambda: None)
    writer.append_all(
        [Append(stored("candy-1", 1)), Append(stored("candy-0", 1))]
    )  # after a group of two, the writer's thread writes the next
    put = writer._asked.put

    def put_too_late(append: Append) -> None:
        writer.close()
        put(append)

    writer._asked = SimpleNamespace(put=put_too_late, get_nowait=writer._asked.get_nowait, empty=writer._asked.empty)  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(OperationalError, match="closed"):
            pool.submit(writer.append, Append(stored("candy-2", 1))).result(timeout=10)
        with pytest.raises(OperationalError, match="closed"):
            pool.submit(writer.append_all, [Append(stored("candy-3", 1))]).result(timeout=10)
    assert [conn.closed for conn in opened] == [True]


# --- the inbox -----------------------------------------------------------------------------------------------------


def test_a_message_is_handled_once_and_a_repetition_gets_the_same_positions(recorder: PostgresRecorder) -> None:
    assert recorder.insert_events(stored("candy-1", 1, 2), received=message("m-1")) == [1, 2]
    with pytest.raises(AlreadyHandled) as known:
        recorder.insert_events(stored("candy-1", 3), received=message("m-1"))
    assert known.value.positions == range(1, 3)
    with pytest.raises(MessageIdReused):
        recorder.insert_events(stored("candy-1", 3), received=message("m-1", b"another"))
    assert recorder.max_notification_id() == 2


def test_in_a_group_each_message_has_its_own_outcome_and_positions(database_url: str) -> None:
    with connect(database_url, WRITER) as conn:
        appended(conn, [Append(stored("candy-1", 1), message("m-1"))])
        group = [
            Append(stored("candy-2", 1, 2), message("m-2")),
            Append(stored("candy-1", 2), message("m-1")),
            Append([], message("m-3")),
            Append(stored("candy-3", 1), message("m-1", b"another")),
            Append(stored("candy-4", 1), message("m-4")),
        ]
        for append, result in zip(group, appended(conn, group), strict=True):
            append.result = result
    assert [group[n].outcome() for n in (0, 2, 4)] == [range(2, 4), range(4, 4), range(4, 5)]
    with pytest.raises(AlreadyHandled) as known:
        group[1].outcome()
    assert known.value.positions == range(1, 2)
    with pytest.raises(MessageIdReused):
        group[3].outcome()
    with PostgresRecorder(database_url) as recorder:
        assert [recorder.handled(message(f"m-{n}")) for n in (1, 2, 4)] == [range(1, 2), range(2, 4), range(4, 5)]
        assert not recorder.handled(message("m-3"))
        assert recorder.max_notification_id() == 4


def test_the_inbox_is_never_scanned_even_before_its_size_is_analyzed(database_url: str) -> None:
    with connect(database_url, WRITER) as conn:
        for number in range(3):
            appended(conn, [Append(stored(f"candy-{number}", 1), message(f"m-{number}"))])
            appended(conn, [Append([], message("m-0")), Append([], message(f"m-{number}", b"another"))])
        conn.execute("SELECT pg_stat_force_next_flush()")
        scans = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relid = 'log.inbox'::regclass"
        assert conn.execute(scans).fetchone() == {"seq_scan": 0, "idx_scan": 9}


def test_a_known_message_is_never_reported_as_a_version_conflict(recorder: PostgresRecorder) -> None:
    recorder.insert_events(stored("candy-1", 1), received=message("m-1"))
    with pytest.raises(AlreadyHandled):
        recorder.insert_events(stored("candy-1", 1), received=message("m-1"))


def test_a_version_conflict_leaves_the_message_unrecorded(recorder: PostgresRecorder) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-1", 1), received=message("m-1"))
    assert recorder.handled(message("m-1")) is None


# --- lost acknowledgements -----------------------------------------------------------------------------------------


@pytest.fixture
def proxied(database_url: str) -> Iterator[tuple[PostgresRecorder, CuttingProxy]]:
    at = conninfo_to_dict(database_url)
    with cutting_proxy(str(at["host"]), int(str(at["port"]))) as proxy:
        through = make_conninfo(database_url, host="127.0.0.1", port=proxy.port)
        with PostgresRecorder(through) as recorder:
            yield recorder, proxy


@pytest.mark.parametrize(
    ("stream", "versions"), [("candy-1", (2, 3)), ("candy-2", (1, 2))], ids=["existing stream", "new stream"]
)
def test_an_append_whose_acknowledgement_was_lost_is_stored_once_and_succeeds(
    proxied: tuple[PostgresRecorder, CuttingProxy], stream: str, versions: tuple[int, int]
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_next_reply_to_the_writer(recorder, proxy)
    assert recorder.insert_events(stored(stream, *versions)) == [2, 3]
    assert proxy.cuts == 1
    versions_stored = [(row.originator_id, row.originator_version) for row in recorder.rows(0, 10, None)]
    assert versions_stored == [("candy-1", 1), *((stream, version) for version in versions)]


def _cut_the_next_reply_to_the_writer(recorder: PostgresRecorder, proxy: CuttingProxy) -> None:
    """Swallow the next reply. Stop the listening connection first, or the reply to that might be swallowed."""
    recorder._pool.wait()  # or a reply to a connection of the pool might be swallowed
    connections = proxy.lines
    recorder._listening.__exit__(None, None, None)
    deadline = time.monotonic() + 10
    while proxy.lines >= connections and time.monotonic() < deadline:  # until replies in flight have arrived
        time.sleep(0.001)
    recorder._listening.__exit__ = lambda *_: None  # type: ignore[method-assign]  # it has exited already
    proxy.cut_next.set()


def test_a_message_whose_acknowledgement_was_lost_is_answered_from_the_inbox(
    proxied: tuple[PostgresRecorder, CuttingProxy],
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_next_reply_to_the_writer(recorder, proxy)
    with pytest.raises(AlreadyHandled) as known:
        recorder.insert_events(stored("candy-1", 2), received=message("m-1"))
    assert known.value.positions == range(2, 3)
    assert recorder.max_notification_id() == 2


def break_before_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the connection of the next group before it is sent, so that the caller cannot know if it was stored."""

    def fail(conn: Connection[Any], _group: Sequence[Append]) -> Any:  # noqa: ANN401 - it raises
        monkeypatch.setattr("infra.event_log.group_commit.appended", appended)
        conn.pgconn.finish()
        raise psycopg.OperationalError("the connection broke")

    monkeypatch.setattr("infra.event_log.group_commit.appended", fail)


def test_an_event_of_another_process_at_our_version_is_not_taken_for_ours(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with PostgresRecorder(database_url) as other:
        other.insert_events(stored("candy-1", 2, state=b'{"by": "slugworth"}'))
    break_before_sending(monkeypatch)
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-1", 2))


def test_an_append_counts_as_stored_only_if_all_its_events_are(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event proves nothing: another process may have appended the same one together with others."""
    recorder.insert_events(stored("claim-1", 1))
    append = Append([*stored("claim-1", 2), *stored("ours-1", 1)])
    with connect(database_url, WRITER) as other:
        append_in(other, Append([append.rows[0], *stored("theirs-1", 1)]))
    break_before_sending(monkeypatch)
    with pytest.raises(IntegrityError):
        recorder._writer.append(append)
    assert recorder.max_notification_id() == 3


def test_a_tracking_record_whose_acknowledgement_was_lost_does_not_fail(
    proxied: tuple[PostgresRecorder, CuttingProxy],
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_next_reply_to_the_writer(recorder, proxy)
    assert recorder.insert_events(stored("candy-1", 2), tracking=Tracking("sweets", 21)) == [2]
    assert proxy.cuts == 1
    proxy.cut_next.set()
    assert recorder.insert_events([], tracking=Tracking("sweets", 22)) == []
    assert proxy.cuts == 2
    with pytest.raises(IntegrityError):
        recorder.insert_events([], tracking=Tracking("sweets", 22))


# --- the head is locked --------------------------------------------------------------------------------------------


def test_an_idle_transaction_blocks_appends_but_no_reader_until_its_timeout(
    recorder: PostgresRecorder, database_url: str
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with closing(connect(database_url, WRITER)) as idle:
        idle.execute("SET idle_in_transaction_session_timeout = '7s'")  # 30 s in production
        idle.execute("BEGIN")
        append_in(idle, Append(stored("candy-idle", 1)))
        with pytest.raises(OperationalError, match="lock timeout"):
            recorder.insert_events(stored("candy-1", 2))
        assert [row.id for row in recorder.rows(0, 10, None)] == [1]
        assert recorder.max_notification_id() == 1
        assert recorder.insert_events(stored("candy-1", 2)) == [
            2
        ]  # the idle timeout comes before this append's own 5 s
        with pytest.raises(psycopg.Error, match="idle-in-transaction timeout"):
            idle.execute("COMMIT")
    assert [row.originator_id for row in recorder.rows(0, 10, None)] == ["candy-1", "candy-1"]


# --- processes -----------------------------------------------------------------------------------------------------

WRITE_EVENTS = """
import sys, threading
from eventsourcing.persistence import StoredEvent
from infra.event_log.postgres_recorder import PostgresRecorder

def write(recorder, name):
    for number in range(int(sys.argv[3])):
        events = [StoredEvent(f"candy-{name}-{number}", version, "candy.Made.v1", b"{}") for version in (1, 2, 3)]
        positions = recorder.insert_events(events)
        with lock:
            print(name, number, *positions, flush=True)

lock = threading.Lock()
with PostgresRecorder(sys.argv[1]) as recorder:
    threads = [threading.Thread(target=write, args=(recorder, f"{sys.argv[2]}.{n}")) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def start_writer(database_url: str, name: str, times: int) -> subprocess.Popen[str]:
    """Start a process whose four threads keep appending three events to new streams and print the positions."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITE_EVENTS, database_url, name, str(times)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def acknowledged(output: str) -> dict[str, list[int]]:
    """Return the positions by stream that a process printed. Ignores a line that was cut off."""
    lines = [line.split() for line in output.splitlines() if len(line.split()) == 5]
    return {f"candy-{name}-{number}": list(map(int, positions)) for name, number, *positions in lines}


def positions_in_log(owner_url: str) -> dict[str, list[int]]:
    """Return the positions by stream in the log. Checks that there are no gaps and that each append is complete."""
    with psycopg.connect(owner_url) as conn:
        rows = conn.execute("SELECT position, stream FROM log.events ORDER BY position").fetchall()
        head = conn.execute("SELECT position FROM log.head").fetchone()
    assert [position for position, _ in rows] == list(range(1, len(rows) + 1))
    assert head == (len(rows),)
    assert set(Counter(stream for _, stream in rows).values()) <= {3}, "an append is stored completely or not at all"
    found: dict[str, list[int]] = {}
    for position, stream in rows:
        found.setdefault(stream, []).append(position)
    return found


def test_concurrent_processes_leave_no_gaps_and_no_duplicates(database_url: str, owner_url: str) -> None:
    processes = [start_writer(database_url, name, 25) for name in ("charlie", "violet", "mike")]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    reported = {stream: positions for output in outputs for stream, positions in acknowledged(output).items()}
    assert len(reported) == 3 * 4 * 25
    assert positions_in_log(owner_url) == reported


def test_a_killed_process_leaves_all_that_it_acknowledged_and_no_partial_append(
    database_url: str, owner_url: str
) -> None:
    with start_writer(database_url, "augustus", 100_000) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(50)]
        process.kill()
        lines += process.stdout.readlines()
    reported = acknowledged("".join(lines))
    assert len(reported) >= 50
    _wait_for_sessions_to_end(owner_url)
    assert reported.items() <= positions_in_log(owner_url).items()


def _wait_for_sessions_to_end(owner_url: str) -> None:
    """The server may still be executing what the process had sent."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 20
    with psycopg.connect(owner_url, autocommit=True) as conn:
        while conn.execute(query).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_killed_database_has_all_that_it_acknowledged_after_its_restart(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    with embedded_postgres(tmp_path / "postgres") as owner_url:
        database_url = program_login(owner_url)
        migrate(owner_url)
        admit(owner_url, database_url)
        with start_writer(database_url, "veruca", 100_000) as process:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(100)]
            pid = int((tmp_path / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0])
            _kill_process_tree(pid)
            process.kill()
            lines += process.stdout.readlines()
    reported = acknowledged("".join(lines))
    assert len(reported) >= 100

    started = time.monotonic()
    with embedded_postgres(tmp_path / "postgres") as owner_url:
        assert time.monotonic() - started < 30
        assert reported.items() <= positions_in_log(owner_url).items()
        admit(owner_url, database_url := program_login(owner_url))
        with PostgresRecorder(database_url) as recorder:
            before = recorder.max_notification_id()
            assert before is not None
            assert recorder.insert_events(stored("candy-after", 1)) == [before + 1]


def _kill_process_tree(pid: int) -> None:
    """Kill the server and all its processes with SIGKILL, so that whatever was not flushed is lost."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)


def test_while_the_database_is_unavailable_an_append_says_that_it_may_have_been_stored(
    database_url: str, owner_url: str
) -> None:
    name = str(conninfo_to_dict(owner_url)["dbname"])
    with PostgresRecorder(database_url) as recorder:
        recorder.insert_events(stored("candy-1", 1))
        with psycopg.connect(owner_url, dbname="postgres", autocommit=True) as server:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            log = Log(recorder)
            with pytest.raises(LogUnavailable, match="does not answer"):
                log.append([], account_id=None, cause=CAUSE, at=NOW, received=message("m-1"))
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        assert recorder.insert_events(stored("candy-1", 2)) == [2]


# --- notifying and resuming ----------------------------------------------------------------------------------------


def test_an_append_notifies_its_own_process_before_it_returns(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PostgreSQL: its notifications arrive later, and may be lost."""
    monkeypatch.setattr(infra.event_log.postgres_recorder, "listening", lambda *_: nullcontext())
    with PostgresRecorder(database_url) as recorder:
        recorder.insert_events(stored("candy-1", 1))
        assert recorder.notifier.count == 1


def test_a_lone_append_is_written_by_its_own_thread_unless_that_is_the_main_one(database_url: str) -> None:
    """The main thread may be interrupted."""
    threads: list[Thread] = []
    writer = GroupCommit(lambda: connect(database_url, WRITER), lambda: threads.append(current_thread()))
    with closing(writer), ThreadPoolExecutor(1) as pool:
        for version in (1, 2, 3):
            pool.submit(writer.append, Append(stored("candy-1", version))).result()
        writer.append(Append(stored("candy-1", 4)))
        (caller,) = pool._threads
    assert threads == [writer._thread, caller, caller, writer._thread]


def test_an_append_in_the_main_thread_takes_no_permit_that_an_interrupt_could_lose(recorder: PostgresRecorder) -> None:
    append = Append(stored("candy-1", 1))
    recorder._writer.append(append)
    assert append.waiter.unattended


def test_appends_submitted_while_a_lone_caller_writes_are_written_after_it(
    recorder: PostgresRecorder, database_url: str
) -> None:
    with ThreadPoolExecutor(9) as pool:
        # After a group of one, the next caller writes its own append.
        pool.submit(recorder.insert_events, stored("candy-0", 1)).result()
        with appends_blocked(recorder, database_url) as first:
            futures = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1)) for n in range(1, 8)]
            until_submitted(recorder, len(futures))
        assert first.result() == [2]
        assert sorted(position for future in futures for position in future.result()) == list(range(3, 10))


def test_a_caller_that_waits_for_many_appends_does_not_block_later_ones(database_url: str) -> None:
    """An append that cannot share the group ends after it, and no permit may be held until then."""
    streams = [("candy-1", 1), ("candy-1", 2), *((f"candy-{n}", 1) for n in range(2, 10))]
    with PostgresRecorder(database_url) as recorder:
        appends = [Append(stored(*version)) for version in streams]
        waiting = Thread(target=recorder._writer.append_all, args=(appends,), daemon=True)
        waiting.start()
        waiting.join(timeout=60)
        assert not waiting.is_alive()
        assert recorder.max_notification_id() == len(streams)
