"""The log, in memory and on PostgreSQL; on PostgreSQL also with concurrent writers and broken connections."""

from __future__ import annotations

import hashlib
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import NAMESPACE_URL, uuid5

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent

from domain.account import BillingReceiverAdded
from domain.messages import Event
from infra.event_log.append import Append, appended
from infra.event_log.log import Change, Log, LogUnavailable, VersionConflict
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import StoredDocument
from infra.postgres.connections import WRITER, connect
from infra.recorded import Cause, Recorded, event_id
from tests.support.databases import MASTER_KEY
from tests.support.examples import (
    LATER,
    NOW,
    bucket_added,
    contact_chosen,
    opened,
    placed,
    requested,
    wonka_added,
    wonka_default,
)
from tests.support.given_domain import but

DORA = Cause("distributor:dora", correlation_id="wish-1", causation_id="click-1")
INVOICE = StoredDocument(hashlib.sha256(b"%PDF-1.7 ACME").hexdigest(), "application/pdf", b"%PDF-1.7 ACME")


def append(log: Log, *changes: Change, documents: Sequence[StoredDocument] = ()) -> list[Recorded]:
    return log.append(changes, account_id="acme", cause=DORA, at=NOW, documents=documents)


def account(expected_version: int, *events: Event) -> Change:
    return Change("account-acme", expected_version, events)


def order(expected_version: int, *events: Event) -> Change:
    return Change("order-order-1", expected_version, events)


def five_events(log: Log) -> list[Recorded]:
    return append(log, account(0, opened, wonka_added), order(0, requested, contact_chosen, placed))


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# --- append and load -----------------------------------------------------------------------------------------------


def test_events_of_several_streams_are_appended_in_one_commit(log: Log) -> None:
    append(log, account(0, opened, wonka_added), order(0, requested))
    assert [(fact.position, fact.stream, fact.version, fact.event) for fact in log.history()] == [
        (1, "account-acme", 1, opened),
        (2, "account-acme", 2, wonka_added),
        (3, "order-order-1", 1, requested),
    ]


def test_streams_continue_from_their_expected_versions(log: Log) -> None:
    append(log, account(0, opened, wonka_added))
    append(log, order(0, requested), account(2, wonka_default))
    assert [(fact.version, fact.event) for fact in log.load("account-acme")] == [
        (1, opened),
        (2, wonka_added),
        (3, wonka_default),
    ]
    assert [fact.version for fact in log.load("order-order-1")] == [1]


def test_events_are_read_back_as_the_append_returned_them(log: Log) -> None:
    appended = append(log, account(0, opened, wonka_added), order(0, requested))
    assert list(log.history()) == appended
    assert log.read(0, limit=1)[0] == Recorded("account-acme", 1, opened, "acme", DORA, NOW, position=1)


def test_an_event_without_an_account_is_recorded_without_one(log: Log) -> None:
    log.append([account(0, opened)], account_id=None, cause=Cause("admin:ada", "wish-2"), at=LATER)
    (fact,) = log.history()
    assert (fact.account_id, fact.cause.causation_id, fact.recorded_at) == (None, None, LATER)


def test_an_event_keeps_its_id_wherever_it_is_read(log: Log) -> None:
    appended = five_events(log)
    loaded = [*log.load("account-acme"), *log.load("order-order-1")]
    assert [fact.event_id for fact in loaded] == [fact.event_id for fact in appended]
    assert len({fact.event_id for fact in appended}) == 5
    assert log.load("account-slugworth") == []


def test_the_id_of_an_event_is_derived_from_its_stream_and_version() -> None:
    expected = uuid5(uuid5(NAMESPACE_URL, "urn:trunkline:event"), "order-2026-03-0001/7")
    assert event_id("order-2026-03-0001", 7) == expected


@pytest.mark.parametrize("stale_first", [True, False], ids=["the first is stale", "the last is stale"])
def test_a_version_conflict_of_one_stream_rejects_all_streams_and_their_document(log: Log, stale_first: bool) -> None:
    append(log, account(0, opened, wonka_added))
    stale, fresh = account(1, bucket_added), order(0, requested)
    with pytest.raises(VersionConflict, match="account-acme"):
        append(log, *((stale, fresh) if stale_first else (fresh, stale)), documents=[INVOICE])
    assert [fact.event for fact in log.history()] == [opened, wonka_added]
    assert log.load("order-order-1") == []
    assert log.document(INVOICE.sha256) is None


def test_after_a_version_conflict_the_caller_can_load_and_append_again(log: Log) -> None:
    append(log, account(0, opened))
    with pytest.raises(VersionConflict):
        append(log, account(0, wonka_added))
    append(log, account(len(log.load("account-acme")), wonka_added))
    assert [(fact.version, fact.event) for fact in log.load("account-acme")] == [(1, opened), (2, wonka_added)]


def test_an_append_without_events_appends_nothing(log: Log) -> None:
    assert append(log) == []
    assert append(log, account(0)) == []
    assert log.head() == 0


def test_a_document_is_stored_with_its_events_and_storing_it_again_changes_nothing(log: Log) -> None:
    append(log, account(0, opened), documents=[INVOICE])
    append(log, order(0, requested), documents=[INVOICE])
    assert log.document(INVOICE.sha256) == INVOICE
    assert log.document("d0c" + 61 * "0") is None
    assert log.head() == 2


# --- read ----------------------------------------------------------------------------------------------------------


def test_a_read_returns_the_events_after_a_position(log: Log) -> None:
    five_events(log)

    def positions(after: int, limit: int, upto: int | None = None) -> list[int]:
        return [fact.position for fact in log.read(after, limit=limit, upto=upto)]

    assert positions(0, limit=100) == [1, 2, 3, 4, 5]
    assert positions(2, limit=100) == [3, 4, 5]
    assert positions(5, limit=100) == []
    assert positions(0, limit=2) == [1, 2]
    assert positions(3, limit=1) == [4]
    assert positions(0, limit=100, upto=3) == [1, 2, 3]
    assert positions(1, limit=1, upto=3) == [2]
    assert positions(3, limit=100, upto=3) == []
    assert positions(0, limit=100, upto=99) == [1, 2, 3, 4, 5]


def test_the_history_is_the_same_in_pages_of_any_size(log: Log) -> None:
    assert list(log.history()) == []
    appended = five_events(log)
    for page in (1, 2, 5, 1000):
        assert list(log.history(page=page)) == appended
        assert list(log.history(upto=3, page=page)) == appended[:3]


def test_the_head_is_the_position_of_the_last_event(log: Log) -> None:
    assert log.head() == 0
    five_events(log)
    assert log.head() == 5


def test_memory_is_flat_in_the_length_of_the_log(postgres: Log) -> None:
    """A replay of a log of ten times the length holds no more at once: one page or two, depending on the prefetch."""

    def grow(upto: int) -> None:
        for first in range(len(postgres.load("order-order-1")), upto, 1_000):
            append(postgres, order(first, *[placed] * 1_000))

    def peak() -> int:
        tracemalloc.start()
        assert sum(1 for _ in postgres.history(page=200)) == postgres.head()
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    grow(2_000)
    short = peak()
    grow(20_000)
    assert peak() < 2 * short


# --- wait ----------------------------------------------------------------------------------------------------------


def test_waiting_returns_at_once_if_the_event_exists_and_otherwise_ends_at_the_timeout(log: Log) -> None:
    five_events(log)
    assert log.wait(4, timeout_s=0)
    assert not log.wait(5, timeout_s=0)
    assert not log.wait(5, timeout_s=0.02)


def test_an_append_wakes_a_waiting_thread(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.event_log.notifications.POLL_S", 60)
    with waiting(log, 0) as woken:
        append(log, account(0, opened))
        assert woken.result(timeout=25)


@contextmanager
def waiting(log: Log, after: int) -> Iterator[Future[bool]]:
    """Wait in another thread for an event after a position, for up to 30 s."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(log.wait, after, 30)


def listeners(owner_url: str) -> list[int]:
    """Return the pids of the backends that listen for notifications."""
    with psycopg.connect(owner_url) as conn:
        found = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        ).fetchall()
    return [pid for (pid,) in found]


def test_an_append_of_another_process_wakes_a_waiting_thread(
    postgres: Log, database_url: str, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.event_log.notifications.POLL_S", 60)
    assert eventually(lambda: len(listeners(owner_url)) == 1)
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere, waiting(postgres, 0) as woken:
        append(elsewhere, account(0, opened))
        assert woken.result(timeout=25)


def test_polling_makes_up_for_a_lost_notification(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.postgres.connections.CHANNEL", "another_channel")
    with (
        postgres_log(database_url, master_key=MASTER_KEY) as deaf_log,
        postgres_log(database_url, master_key=MASTER_KEY) as elsewhere,
        waiting(deaf_log, 0) as woken,
    ):
        append(elsewhere, account(0, opened))
        assert woken.result(timeout=25)


def test_listening_resumes_after_its_connection_breaks(
    postgres: Log, database_url: str, owner_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("infra.event_log.notifications.POLL_S", 60)
    assert eventually(lambda: len(listeners(owner_url)) == 1)
    (before,) = listeners(owner_url)
    with psycopg.connect(owner_url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s)", (before,))
    assert eventually(lambda: listeners(owner_url) not in ([], [before]))
    assert "restarts" in caplog.text
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere, waiting(postgres, 0) as woken:
        append(elsewhere, account(0, opened))
        assert woken.result(timeout=25)


# --- concurrency ---------------------------------------------------------------------------------------------------

WRITERS, TIMES = 8, 10


def added(writer: int, n: int) -> BillingReceiverAdded:
    return but(wonka_added, receiver_id=f"umpalumpa-{writer}-{n}")


def write_with_retry(log: Log, writer: int, start: threading.Barrier) -> None:
    """Append to the writer's own stream, without conflicts, and to the one that all writers share."""
    start.wait()
    for n in range(TIMES):
        append(log, Change(f"account-umpalumpa-{writer}", n, [added(writer, n)]))
        while True:
            try:
                append(log, account(len(log.load("account-acme")), added(writer, n)))
            except VersionConflict:
                continue
            break


def read_as_they_arrive(log: Log, count: int) -> list[Recorded]:
    """Read page by page, as events arrive, until there are ``count``."""
    seen: list[Recorded] = []
    while len(seen) < count:
        after = seen[-1].position if seen else 0
        assert log.wait(after, timeout_s=30)
        seen += log.read(after, limit=7)
    return seen


def test_eight_writers_of_one_stream_lose_no_event_and_readers_see_each_once_in_order(
    postgres: Log, database_url: str
) -> None:
    start = threading.Barrier(WRITERS)
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere, ThreadPoolExecutor(WRITERS + 2) as pool:
        readers = [pool.submit(read_as_they_arrive, log, 2 * WRITERS * TIMES) for log in (postgres, elsewhere)]
        logs = [postgres, elsewhere] * (WRITERS // 2)
        for written in [pool.submit(write_with_retry, log, n, start) for n, log in enumerate(logs)]:
            written.result()
        seen, seen_elsewhere = [reader.result() for reader in readers]

    stream = postgres.load("account-acme")
    receiver_ids = {added(writer, n).receiver_id for writer in range(WRITERS) for n in range(TIMES)}
    assert [fact.version for fact in stream] == list(range(1, WRITERS * TIMES + 1))
    assert {fact.event.receiver_id for fact in stream if isinstance(fact.event, BillingReceiverAdded)} == receiver_ids
    for writer in range(WRITERS):
        own = postgres.load(f"account-umpalumpa-{writer}")
        assert [fact.event for fact in own] == [added(writer, n) for n in range(TIMES)]

    positions = [fact.position for fact in seen]
    assert positions == sorted(set(positions))
    assert seen == seen_elsewhere == list(postgres.history())


def test_a_slow_transaction_is_not_overtaken_by_higher_positions(
    postgres: Log, database_url: str, owner_url: str
) -> None:
    """A transaction that has appended blocks later ones until it ends, so no reader skips its events."""
    append(postgres, account(0, opened))
    with connect(database_url, WRITER) as slow, psycopg.connect(owner_url, autocommit=True) as observer:
        slow.autocommit = False
        appended(slow, [Append([StoredEvent("account-slow", 1, opened.TOPIC, b"{}")])])
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(append, postgres, order(0, requested))
            blocked = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            assert eventually(lambda: observer.execute(blocked).fetchone() is not None)
            assert [fact.stream for fact in postgres.history()] == ["account-acme"]
            slow.commit()
            later.result()
    rows = postgres._recorder.select_notifications(None, 10)
    assert [row.originator_id for row in rows] == ["account-acme", "account-slow", "order-order-1"]


# --- an unavailable database ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_pool_timeout")
def test_an_unavailable_database_is_reported_and_the_log_works_again_afterwards(postgres: Log, owner_url: str) -> None:
    five_events(postgres)
    with unavailable(owner_url):
        for attempt in (
            lambda: append(postgres, account(2, bucket_added)),
            lambda: postgres.load("account-acme"),
            lambda: postgres.read(0, limit=1),
            postgres.head,
            lambda: postgres.document(INVOICE.sha256),
        ):
            with pytest.raises(LogUnavailable, match="does not answer"):
                attempt()
    assert eventually(lambda: answers(postgres), timeout_s=20)
    assert postgres.head() == 5
    assert append(postgres, account(2, bucket_added))[0].position > 5


@pytest.fixture
def short_pool_timeout(postgres: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres._recorder._pool, "timeout", 0.02)  # type: ignore[attr-defined]  # on PostgreSQL


@contextmanager
def unavailable(owner_url: str) -> Iterator[None]:
    """Make the database end all sessions and refuse new ones."""
    name = psycopg.conninfo.conninfo_to_dict(owner_url)["dbname"]
    with psycopg.connect(owner_url, dbname="postgres", autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def answers(log: Log) -> bool:
    try:
        return log.head() >= 0
    except LogUnavailable:
        return False
