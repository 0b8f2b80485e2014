"""Groups of appends: who fails, fails alone; what is acknowledged is there; what was lost on the way is recognised."""

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
    """Append in the transaction that is open, which then holds the head."""
    appended(conn, [append])


@contextmanager
def held(recorder: PostgresRecorder, database_url: str) -> Iterator[Future[Sequence[int]]]:
    """Nobody can append for a while, so that what is asked meanwhile makes one group; gives the one who went before."""
    with ThreadPoolExecutor(1) as pool, connect(database_url, WRITER) as conn, conn.transaction():
        append_in(conn, Append([]))
        blocker = pool.submit(recorder.insert_events, stored("candy-blocker", 1))
        while not blocker.done() and not conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            time.sleep(0.001)
        yield blocker


def until_asked(recorder: PostgresRecorder, count: int) -> None:
    """Wait until so many appends wait for the one that is on its way."""
    deadline = time.monotonic() + 20
    while recorder._writer._asked.qsize() < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- one group -----------------------------------------------------------------------------------------------------


def test_of_a_group_the_stale_one_fails_and_nobody_else(recorder: PostgresRecorder, database_url: str) -> None:
    recorder.insert_events(stored("candy-0", 1))
    with ThreadPoolExecutor(16) as pool:
        with held(recorder, database_url) as first:
            asked = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1, 2)) for n in range(15)]
            until_asked(recorder, len(asked))
        assert first.result() == [2]
        with pytest.raises(IntegrityError, match="candy-0"):
            asked[0].result()
        positions = [future.result() for future in asked[1:]]
    assert sorted(position for both in positions for position in both) == list(range(3, 31))
    assert all(second == one + 1 for one, second in positions)


def test_what_stands_at_a_position_that_is_to_come_is_no_stale_append(
    recorder: PostgresRecorder, owner_url: str
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("CREATE TEMPORARY TABLE row AS SELECT * FROM log.events")
        owner.execute("UPDATE row SET position = 2, stream = 'candy-forged'")
        owner.execute("INSERT INTO log.events SELECT * FROM row")
    with pytest.raises(DataError, match="events_pkey"):
        recorder.insert_events(stored("candy-2", 1))


def test_of_a_group_the_one_that_the_database_cannot_hold_fails_and_nobody_else(
    recorder: PostgresRecorder, database_url: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        with held(recorder, database_url) as first:
            good = pool.submit(recorder.insert_events, stored("candy-good", 1))
            bad = pool.submit(recorder.insert_events, stored("candy-\x00", 1))
            better = pool.submit(recorder.insert_events, stored("candy-better", 1))
            until_asked(recorder, 3)
        with pytest.raises(DataError, match="0x00"):
            bad.result()
        assert sorted([*first.result(), *good.result(), *better.result()]) == [1, 2, 3]


def test_of_a_group_in_which_several_fail_each_has_its_own_reason_and_the_others_stand_once(
    recorder: PostgresRecorder, database_url: str
) -> None:
    recorder.insert_events(stored("candy-old", 1))
    with ThreadPoolExecutor(5) as pool:
        with held(recorder, database_url) as first:
            streams = [("candy-old", 1), ("candy-good", 1), ("candy-negative", -1), ("candy-better", 1)]
            asked = []
            for stream, version in streams:
                asked.append(pool.submit(recorder.insert_events, stored(stream, version)))
                until_asked(recorder, len(asked))
        assert first.result() == [2]
        with pytest.raises(IntegrityError, match="candy-old"):
            asked[0].result()
        with pytest.raises(DataError, match="events_version_check"):
            asked[2].result()
        assert [asked[n].result() for n in (1, 3)] == [[3], [4]]


def test_of_a_group_a_name_that_is_too_long_for_an_index_fails_and_nobody_else(
    recorder: PostgresRecorder, database_url: str
) -> None:
    long = "".join(secrets.token_hex(8000))
    with ThreadPoolExecutor(3) as pool:
        with held(recorder, database_url) as first:
            good, bad = (pool.submit(recorder.insert_events, stored(name, 1)) for name in ("candy-good", long))
            until_asked(recorder, 2)
        with pytest.raises(DataError, match="index row requires"):
            bad.result()
        assert sorted([*first.result(), *good.result()]) == [1, 2]


def test_a_group_is_no_larger_than_a_statement_can_be(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.event_log.group_commit.GROUP_BYTES_MAX", 1000)
    wrote: list[int] = []

    def counted(conn: Connection[Any], group: Sequence[Append]) -> Any:  # noqa: ANN401 - as it is
        wrote.append(len(group))
        return appended(conn, group)

    monkeypatch.setattr("infra.event_log.group_commit.appended", counted)
    with ThreadPoolExecutor(4) as pool:
        with held(recorder, database_url):
            asked = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1, state=bytes(600))) for n in range(4)]
            until_asked(recorder, 4)
        assert sorted(position for future in asked for position in future.result()) == [2, 3, 4, 5]
    assert wrote[-2:] == [2, 2]
    monkeypatch.setattr("infra.event_log.append.APPEND_BYTES_MAX", 1000)
    with pytest.raises(DataError, match=r"has 1,\d\d\d bytes; it may have at most 1,000"):
        recorder.insert_events(stored("candy-large", 1, state=bytes(1000)))


def test_what_cannot_be_packed_fails_before_it_joins_a_group(recorder: PostgresRecorder) -> None:
    with pytest.raises(DataError, match="surrogates"):
        recorder.insert_events(stored("candy-\ud800", 1))
    with pytest.raises(DataError, match="cannot"):
        recorder.insert_events(stored("candy-huge", 2**63))


def test_two_appends_to_one_stream_or_of_one_message_never_share_a_group() -> None:
    one, same, other = Append(stored("candy-1", 1)), Append(stored("candy-1", 2)), Append(stored("candy-2", 1))
    both = Append([*stored("candy-2", 2), *stored("candy-3", 1)])
    after_both = Append(stored("candy-3", 2))
    assert _compatible([one, same, other, both, after_both]) == ([one, other], [same, both, after_both])
    told, told_again = Append([], message("m-1")), Append([], message("m-1"))
    assert _compatible([told, told_again]) == ([told], [told_again])


def test_a_stream_has_no_gap_and_begins_at_its_beginning(recorder: PostgresRecorder) -> None:
    for gap in ([3], [1, 3], [1, 1], [2, 1]):
        with pytest.raises(IntegrityError):
            recorder.insert_events(stored("candy-gap", *gap))
    recorder.insert_events(stored("candy-gap", 1, 2))
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-gap", 4))
    assert recorder.max_notification_id() == 2


def test_after_the_end_nothing_is_appended(database_url: str) -> None:
    with PostgresRecorder(database_url) as recorder:
        recorder.insert_events(stored("candy-1", 1))
    with pytest.raises(OperationalError, match="closed"):
        recorder.insert_events(stored("candy-1", 2))


def test_what_is_asked_in_the_moment_of_the_end_is_refused_and_waits_for_nobody(database_url: str) -> None:
    made: list[Connection[Any]] = []

    def connected() -> Connection[Any]:
        made.append(connect(database_url, WRITER))
        return made[-1]

    writer = GroupCommit(connected, lambda: None)
    writer.append_all([Append(stored("candy-1", 1)), Append(stored("candy-0", 1))])  # the next is left to the thread
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
    assert [conn.closed for conn in made] == [True]


# --- the inbox -----------------------------------------------------------------------------------------------------


def test_a_message_is_dealt_with_once_and_gives_the_same_positions_again(recorder: PostgresRecorder) -> None:
    assert recorder.insert_events(stored("candy-1", 1, 2), received=message("m-1")) == [1, 2]
    with pytest.raises(AlreadyHandled) as known:
        recorder.insert_events(stored("candy-1", 3), received=message("m-1"))
    assert known.value.positions == range(1, 3)
    with pytest.raises(MessageIdReused):
        recorder.insert_events(stored("candy-1", 3), received=message("m-1", b"another"))
    assert recorder.max_notification_id() == 2


def test_in_a_group_each_message_has_its_own_outcome_and_its_own_positions(database_url: str) -> None:
    with connect(database_url, WRITER) as conn:
        appended(conn, [Append(stored("candy-1", 1), message("m-1"))])
        group = [
            Append(stored("candy-2", 1, 2), message("m-2")),
            Append(stored("candy-1", 2), message("m-1")),
            Append([], message("m-3")),
            Append(stored("candy-3", 1), message("m-1", b"another")),
            Append(stored("candy-4", 1), message("m-4")),
        ]
        for append, said in zip(group, appended(conn, group), strict=True):
            append.result = said
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


def test_the_inbox_is_never_read_through_also_while_nobody_knows_how_large_it_is(database_url: str) -> None:
    with connect(database_url, WRITER) as conn:
        for number in range(3):
            appended(conn, [Append(stored(f"candy-{number}", 1), message(f"m-{number}"))])
            appended(conn, [Append([], message("m-0")), Append([], message(f"m-{number}", b"another"))])
        conn.execute("SELECT pg_stat_force_next_flush()")
        read = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relid = 'log.inbox'::regclass"
        assert conn.execute(read).fetchone() == {"seq_scan": 0, "idx_scan": 9}


def test_a_known_message_is_never_called_stale(recorder: PostgresRecorder) -> None:
    recorder.insert_events(stored("candy-1", 1), received=message("m-1"))
    with pytest.raises(AlreadyHandled):
        recorder.insert_events(stored("candy-1", 1), received=message("m-1"))


def test_a_stale_append_leaves_its_message_unknown(recorder: PostgresRecorder) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-1", 1), received=message("m-1"))
    assert recorder.handled(message("m-1")) is None


# --- acknowledgements that are lost --------------------------------------------------------------------------------


@pytest.fixture
def proxied(database_url: str) -> Iterator[tuple[PostgresRecorder, CuttingProxy]]:
    at = conninfo_to_dict(database_url)
    with cutting_proxy(str(at["host"]), int(str(at["port"]))) as proxy:
        through = make_conninfo(database_url, host="127.0.0.1", port=proxy.port)
        with PostgresRecorder(through) as recorder:
            yield recorder, proxy


@pytest.mark.parametrize(("stream", "versions"), [("candy-1", (2, 3)), ("candy-2", (1, 2))], ids=["goes on", "begins"])
def test_an_append_whose_acknowledgement_was_lost_stands_once_and_its_caller_is_told_so(
    proxied: tuple[PostgresRecorder, CuttingProxy], stream: str, versions: tuple[int, int]
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_writers_line(recorder, proxy)
    assert recorder.insert_events(stored(stream, *versions)) == [2, 3]
    assert proxy.cuts == 1
    places = [(row.originator_id, row.originator_version) for row in recorder.rows(0, 10, None)]
    assert places == [("candy-1", 1), *((stream, version) for version in versions)]


def _cut_the_writers_line(recorder: PostgresRecorder, proxy: CuttingProxy) -> None:
    """The next answer is swallowed. Whoever listens would get one too, so it stops before."""
    recorder._pool.wait()  # or the answer that is swallowed may be that to a connection of the pool's
    lines = proxy.lines
    recorder._listening.__exit__(None, None, None)
    deadline = time.monotonic() + 10
    while proxy.lines >= lines and time.monotonic() < deadline:  # what was on its way to it is there before
        time.sleep(0.001)
    recorder._listening.__exit__ = lambda *_: None  # type: ignore[method-assign]  # it has ended already
    proxy.cut_next.set()


def test_a_message_whose_acknowledgement_was_lost_is_answered_out_of_the_inbox(
    proxied: tuple[PostgresRecorder, CuttingProxy],
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_writers_line(recorder, proxy)
    with pytest.raises(AlreadyHandled) as known:
        recorder.insert_events(stored("candy-1", 2), received=message("m-1"))
    assert known.value.positions == range(2, 3)
    assert recorder.max_notification_id() == 2


def cut_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next group's line breaks in such a way that nobody knows whether the group was written; and it was not."""

    def cut(conn: Connection[Any], _group: Sequence[Append]) -> Any:  # noqa: ANN401 - it raises
        monkeypatch.setattr("infra.event_log.group_commit.appended", appended)
        conn.pgconn.finish()
        raise psycopg.OperationalError("the line is cut")

    monkeypatch.setattr("infra.event_log.group_commit.appended", cut)


def test_what_another_wrote_in_our_place_is_not_taken_for_ours(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with PostgresRecorder(database_url) as other:
        other.insert_events(stored("candy-1", 2, state=b'{"by": "slugworth"}'))
    cut_before_anything_is_sent(monkeypatch)
    with pytest.raises(IntegrityError):
        recorder.insert_events(stored("candy-1", 2))


def test_of_several_events_all_have_to_be_ours(
    recorder: PostgresRecorder, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first alone proves nothing: another may have wished for the same, and for something else besides."""
    recorder.insert_events(stored("claim-1", 1))
    ours = Append([*stored("claim-1", 2), *stored("ours-1", 1)])
    with connect(database_url, WRITER) as other:
        append_in(other, Append([ours.rows[0], *stored("theirs-1", 1)]))
    cut_before_anything_is_sent(monkeypatch)
    with pytest.raises(IntegrityError):
        recorder._writer.append(ours)
    assert recorder.max_notification_id() == 3


def test_a_tracking_whose_acknowledgement_was_lost_is_no_failure(
    proxied: tuple[PostgresRecorder, CuttingProxy],
) -> None:
    recorder, proxy = proxied
    recorder.insert_events(stored("candy-1", 1))
    _cut_the_writers_line(recorder, proxy)
    assert recorder.insert_events(stored("candy-1", 2), tracking=Tracking("sweets", 21)) == [2]
    assert proxy.cuts == 1
    proxy.cut_next.set()
    assert recorder.insert_events([], tracking=Tracking("sweets", 22)) == []
    assert proxy.cuts == 2
    with pytest.raises(IntegrityError):
        recorder.insert_events([], tracking=Tracking("sweets", 22))


# --- somebody holds the head ---------------------------------------------------------------------------------------


def test_a_session_idle_in_a_transaction_holds_up_appends_but_no_reader_and_a_timeout_frees_it(
    recorder: PostgresRecorder, database_url: str
) -> None:
    recorder.insert_events(stored("candy-1", 1))
    with closing(connect(database_url, WRITER)) as idle:
        idle.execute("SET idle_in_transaction_session_timeout = '7s'")  # it is half a minute in earnest
        idle.execute("BEGIN")
        append_in(idle, Append(stored("candy-idle", 1)))
        with pytest.raises(OperationalError, match="lock timeout"):
            recorder.insert_events(stored("candy-1", 2))
        assert [row.id for row in recorder.rows(0, 10, None)] == [1]
        assert recorder.max_notification_id() == 1
        assert recorder.insert_events(stored("candy-1", 2)) == [2]  # within its own five seconds, the timeout has come
        with pytest.raises(psycopg.Error, match="idle-in-transaction timeout"):
            idle.execute("COMMIT")
    assert [row.originator_id for row in recorder.rows(0, 10, None)] == ["candy-1", "candy-1"]


# --- processes -----------------------------------------------------------------------------------------------------

WRITE_ON = """
import sys, threading
from eventsourcing.persistence import StoredEvent
from infra.event_log.postgres_recorder import PostgresRecorder

def write(recorder, name):
    for number in range(int(sys.argv[3])):
        events = [StoredEvent(f"candy-{name}-{number}", version, "candy.Made.v1", b"{}") for version in (1, 2, 3)]
        positions = recorder.insert_events(events)
        with told:
            print(name, number, *positions, flush=True)

told = threading.Lock()
with PostgresRecorder(sys.argv[1]) as recorder:
    threads = [threading.Thread(target=write, args=(recorder, f"{sys.argv[2]}.{n}")) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def writing(database_url: str, name: str, times: int) -> subprocess.Popen[str]:
    """A process of four threads that each append three events to a new stream, again and again, and say where."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITE_ON, database_url, name, str(times)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def acknowledged(said: str) -> dict[str, list[int]]:
    """The positions by stream, as they were told; a line that was cut off tells nothing."""
    lines = [line.split() for line in said.splitlines() if len(line.split()) == 5]
    return {f"candy-{name}-{number}": list(map(int, positions)) for name, number, *positions in lines}


def everything(owner_url: str) -> dict[str, list[int]]:
    """The positions by stream, as the log has them. Without a gap, and each stream whole."""
    with psycopg.connect(owner_url) as conn:
        rows = conn.execute("SELECT position, stream FROM log.events ORDER BY position").fetchall()
        head = conn.execute("SELECT position FROM log.head").fetchone()
    assert [position for position, _ in rows] == list(range(1, len(rows) + 1))
    assert head == (len(rows),)
    assert set(Counter(stream for _, stream in rows).values()) <= {3}, "an append is all there, or nothing of it"
    found: dict[str, list[int]] = {}
    for position, stream in rows:
        found.setdefault(stream, []).append(position)
    return found


def test_processes_that_write_at_once_leave_no_gap_and_nothing_twice(database_url: str, owner_url: str) -> None:
    processes = [writing(database_url, name, 25) for name in ("charlie", "violet", "mike")]
    said = [process.communicate(timeout=60)[0] for process in processes]
    told = {stream: positions for text in said for stream, positions in acknowledged(text).items()}
    assert len(told) == 3 * 4 * 25
    assert everything(owner_url) == told


def test_a_program_that_is_killed_leaves_what_it_acknowledged_and_no_half_of_anything(
    database_url: str, owner_url: str
) -> None:
    with writing(database_url, "augustus", 100_000) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(50)]
        process.kill()
        lines += process.stdout.readlines()
    told = acknowledged("".join(lines))
    assert len(told) >= 50
    _no_session_is_left(owner_url)
    assert told.items() <= everything(owner_url).items()


def _no_session_is_left(owner_url: str) -> None:
    """What the program had sent, the server may still be doing."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 20
    with psycopg.connect(owner_url, autocommit=True) as conn:
        while conn.execute(query).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_database_that_is_killed_has_what_it_acknowledged_when_it_is_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    with embedded_postgres(tmp_path / "postgres") as owner_url:
        database_url = program_login(owner_url)
        migrate(owner_url)
        admit(owner_url, database_url)
        with writing(database_url, "veruca", 100_000) as process:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(100)]
            pid = int((tmp_path / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0])
            _kill_family(pid)
            process.kill()
            lines += process.stdout.readlines()
    told = acknowledged("".join(lines))
    assert len(told) >= 100

    begun = time.monotonic()
    with embedded_postgres(tmp_path / "postgres") as owner_url:
        assert time.monotonic() - begun < 30
        assert told.items() <= everything(owner_url).items()
        admit(owner_url, database_url := program_login(owner_url))
        with PostgresRecorder(database_url) as recorder:
            before = recorder.max_notification_id()
            assert before is not None
            assert recorder.insert_events(stored("candy-after", 1)) == [before + 1]


def _kill_family(pid: int) -> None:
    """Kill -9, of the server and of each of its processes at once: what was not on the disk is gone."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        os.kill(each, signal.SIGKILL)


def test_while_the_database_is_gone_an_append_says_that_it_may_stand_there(database_url: str, owner_url: str) -> None:
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


# --- telling, and going on --------------------------------------------------------------------------------------------


def test_what_is_appended_here_is_told_before_whoever_appended_goes_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ourselves: what PostgreSQL notifies of comes later, and at times never."""
    monkeypatch.setattr(infra.event_log.postgres_recorder, "listening", lambda *_: nullcontext())
    with PostgresRecorder(database_url) as recorder:
        recorder.insert_events(stored("candy-1", 1))
        assert recorder.notifier.count == 1


def test_who_appends_alone_waits_for_no_other_thread_but_the_main_one_does_for_it_may_be_interrupted(
    database_url: str,
) -> None:
    wrote: list[Thread] = []
    writer = GroupCommit(lambda: connect(database_url, WRITER), lambda: wrote.append(current_thread()))
    with closing(writer), ThreadPoolExecutor(1) as pool:
        for version in (1, 2, 3):
            pool.submit(writer.append, Append(stored("candy-1", version))).result()
        writer.append(Append(stored("candy-1", 4)))
        (caller,) = pool._threads
    assert wrote == [writer._thread, caller, caller, writer._thread]


def test_in_the_main_thread_nobody_has_a_turn_that_an_interrupt_could_take_away(recorder: PostgresRecorder) -> None:
    append = Append(stored("candy-1", 1))
    recorder._writer.append(append)
    assert append.waiter.unattended


def test_what_is_asked_while_somebody_writes_for_himself_alone_is_written_when_he_has(
    recorder: PostgresRecorder, database_url: str
) -> None:
    with ThreadPoolExecutor(9) as pool:
        pool.submit(recorder.insert_events, stored("candy-0", 1)).result()  # of one, so the next writes for himself
        with held(recorder, database_url) as first:
            asked = [pool.submit(recorder.insert_events, stored(f"candy-{n}", 1)) for n in range(1, 8)]
            until_asked(recorder, len(asked))
        assert first.result() == [2]
        assert sorted(position for future in asked for position in future.result()) == list(range(3, 10))


def test_one_who_waits_for_many_is_not_in_the_way_of_those_that_come_later(database_url: str) -> None:
    """What shares no group with the others ends after them: nobody is to keep a turn for it until then."""
    streams = [("candy-1", 1), ("candy-1", 2), *((f"candy-{n}", 1) for n in range(2, 10))]
    with PostgresRecorder(database_url) as recorder:
        appends = [Append(stored(*place)) for place in streams]
        waiting = Thread(target=recorder._writer.append_all, args=(appends,), daemon=True)
        waiting.start()
        waiting.join(timeout=60)
        assert not waiting.is_alive()
        assert recorder.max_notification_id() == len(streams)
