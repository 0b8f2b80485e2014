"""The keys of personal data: made once, destroyed for good; in memory, and on PostgreSQL under a master key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any

import psycopg
import pytest
from eventsourcing.persistence import OperationalError
from psycopg.errors import InsufficientPrivilege

from domain.account import ERASED_CONTACT, BillingReceiverAdded
from domain.messages import Event
from infra.event_log.log import Change, Log, LogUnavailable, VersionConflict
from infra.event_log.postgres_recorder import PostgresRecorder, postgres_log
from infra.personal_data.person_keys import MemoryPersonKeys, PersonKeys
from infra.personal_data.postgres_person_keys import CACHED_S, PostgresPersonKeys
from infra.postgres.connections import AUDITOR, PROJECTOR, WRITER, connect
from infra.recorded import Cause
from infra.settings import WrongSetting
from tests.support.databases import MASTER_KEY
from tests.support.examples import NOW, WONKA, bucket_added, opened, wonka_added, wonka_default, wonka_erased
from tests.support.given_domain import but

WILLY, CHARLIE = "acme/wonka", "acme/bucket"
ANOTHER_MASTER_KEY = MASTER_KEY[::-1]


@pytest.fixture
def recorder(database_url: str) -> Iterator[PostgresRecorder]:
    with PostgresRecorder(database_url, master_key=MASTER_KEY) as recorder:
        yield recorder


@pytest.fixture(params=["memory", "postgres"])
def keys(request: pytest.FixtureRequest) -> PersonKeys:
    """Keys in memory, and on PostgreSQL."""
    if request.param == "memory":
        return MemoryPersonKeys()
    found: PostgresRecorder = request.getfixturevalue("recorder")
    return found.keys


def append(log: Log, *events: Event, after: int = 0) -> None:
    log.append([Change("account-acme", after, events)], account_id="acme", cause=Cause("admin:ada", "w"), at=NOW)


def contact(log: Log, place: int = 1) -> object:
    event = log.load("account-acme")[place].event
    assert isinstance(event, BillingReceiverAdded)
    return event.contact


# --- in memory and on PostgreSQL -----------------------------------------------------------------------------------


def test_a_key_is_made_once_and_each_person_has_another(keys: PersonKeys) -> None:
    assert keys.standing([WILLY, CHARLIE]) == {}
    first, second = keys.made(WILLY), keys.made(CHARLIE)
    assert first != second
    assert [first and len(first), second and len(second)] == [32, 32]
    assert keys.made(WILLY) == first
    assert keys.standing([WILLY, CHARLIE, "acme/nobody"]) == {WILLY: first, CHARLIE: second}


def test_a_destroyed_key_is_gone_and_no_other_is_ever_made(keys: PersonKeys) -> None:
    keys.made(WILLY)
    kept = keys.made(CHARLIE)
    assert keys.destroy(WILLY)
    assert not keys.destroy(WILLY)
    assert keys.made(WILLY) is None
    assert keys.standing([WILLY, CHARLIE]) == {CHARLIE: kept}


def test_a_person_erased_before_having_a_key_never_gets_one(keys: PersonKeys) -> None:
    assert not keys.destroy(WILLY)
    assert keys.made(WILLY) is None


def test_concurrent_callers_get_the_same_key(keys: PersonKeys) -> None:
    begin = Barrier(8)

    def one(_: int) -> bytes | None:
        begin.wait()
        return keys.made(WILLY)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1


def test_after_a_key_is_destroyed_only_its_persons_data_reads_as_erased(log: Log) -> None:
    append(log, opened, wonka_added, bucket_added, wonka_default)
    before = log.load("account-acme")
    assert log.has_key(WILLY)

    log.destroy_key(WILLY)

    assert not log.has_key(WILLY)
    after = log.load("account-acme")
    assert after[1].event == but(wonka_added, contact=ERASED_CONTACT)
    assert [after[0], *after[2:]] == [before[0], *before[2:]]
    assert log.read(0, limit=10) == list(log.of_account("acme")) == after


def test_data_of_a_person_erased_meanwhile_is_stored_as_erased(log: Log) -> None:
    """As by a request that loaded the account before the erasure."""
    append(log, opened)
    log.destroy_key(WILLY)
    append(log, wonka_added, after=1)

    assert contact(log) == ERASED_CONTACT
    (stored,) = log._recorder.select_events("account-acme", gt=1)
    assert b"Willy" not in stored.state


# --- on PostgreSQL -------------------------------------------------------------------------------------------------


def test_concurrent_processes_get_the_same_key(database_url: str) -> None:
    begin = Barrier(4)
    with ExitStack() as stack:
        logs = [PostgresRecorder(database_url, 2, MASTER_KEY) for _ in range(4)]
        for log in logs:
            stack.enter_context(log)

        def one(log: PostgresRecorder) -> list[bytes | None]:
            begin.wait()
            return [log.keys.made(f"acme/oompa-{n}") for n in range(20)]

        with ThreadPoolExecutor(4) as pool:
            given = list(pool.map(one, logs))
    assert given[0] == given[1] == given[2] == given[3]
    assert len(set(given[0])) == 20


def test_a_key_exists_before_its_event_and_stays_if_the_event_is_refused(postgres: Log, owner_url: str) -> None:
    append(postgres, opened)
    with pytest.raises(VersionConflict):
        append(postgres, wonka_added)
    with psycopg.connect(owner_url) as owner:
        assert owner.execute("SELECT person FROM log.person_keys").fetchall() == [(WILLY,)]
    append(postgres, wonka_added, after=1)
    assert contact(postgres) == WONKA


def test_the_table_has_no_unwrapped_key(recorder: PostgresRecorder, owner_url: str) -> None:
    key = recorder.keys.made(WILLY)
    assert key is not None
    with psycopg.connect(owner_url) as owner:
        rows = owner.execute("SELECT person, wrapped FROM log.person_keys").fetchall()
    ((person, wrapped),) = rows
    assert (person, len(wrapped)) == (WILLY, 12 + 32 + 16)
    assert key not in wrapped
    assert MASTER_KEY not in wrapped


def test_the_erasure_event_and_the_end_of_the_key_are_one_commit(
    postgres: Log, database_url: str, owner_url: str
) -> None:
    """A crash right after the commit, before anything else is done, leaves neither without the other."""
    append(postgres, opened, wonka_added)
    append(postgres, wonka_erased, after=2)
    with psycopg.connect(owner_url) as owner:
        assert owner.execute("SELECT wrapped, erased_at IS NOT NULL FROM log.person_keys").fetchall() == [(None, True)]
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere:
        assert contact(elsewhere) == ERASED_CONTACT


def test_an_erasure_that_is_refused_leaves_the_key(postgres: Log, database_url: str) -> None:
    append(postgres, opened, wonka_added)
    with pytest.raises(VersionConflict):
        append(postgres, wonka_erased, after=1)
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere:
        assert contact(elsewhere) == WONKA


def test_a_key_whose_row_was_deleted_counts_as_erased(postgres: Log, database_url: str, owner_url: str) -> None:
    append(postgres, opened, wonka_added)
    with psycopg.connect(owner_url) as owner:
        owner.execute("DELETE FROM log.person_keys")
    with postgres_log(database_url, master_key=MASTER_KEY) as elsewhere:
        assert contact(elsewhere) == ERASED_CONTACT


# --- the master key ------------------------------------------------------------------------------------------------


def test_a_wrong_master_key_is_named_at_once_and_nothing_looks_erased(postgres: Log, database_url: str) -> None:
    append(postgres, opened, wonka_added)
    with (
        pytest.raises(WrongSetting, match=r"^TRUNKLINE_MASTER_KEY is not the one .* nobody was erased\.$"),
        postgres_log(database_url, master_key=ANOTHER_MASTER_KEY),
    ):
        pass


def test_a_wrong_master_key_first_used_on_an_empty_table_later_unwraps_and_makes_nothing(
    database_url: str, postgres: Log
) -> None:
    with postgres_log(database_url, master_key=ANOTHER_MASTER_KEY) as wrong:
        append(postgres, opened, wonka_added)
        for attempt in (
            lambda: wrong.load("account-acme"),
            lambda: wrong.read(0, limit=9),
            lambda: list(wrong.of_account("acme")),
            lambda: append(wrong, bucket_added, after=2),
            lambda: wrong.has_key(WILLY),
        ):
            with pytest.raises(WrongSetting, match="TRUNKLINE_MASTER_KEY is not the one"):
                attempt()
        assert [fact.event for fact in wrong.read(0, limit=1)] == [opened]
    assert postgres.head() == 2


def test_without_a_master_key_only_personal_data_cannot_be_read_or_written(postgres: Log, database_url: str) -> None:
    append(postgres, opened, wonka_added)
    with postgres_log(database_url) as without:
        assert [fact.event for fact in without.read(0, limit=1)] == [opened]
        append(without, wonka_default, after=2)
        for attempt in (lambda: without.load("account-acme"), lambda: append(without, bucket_added, after=3)):
            with pytest.raises(WrongSetting, match="TRUNKLINE_MASTER_KEY is missing"):
                attempt()
        without.destroy_key(WILLY)  # needs no master key
        assert contact(without) == ERASED_CONTACT


def test_a_wrapped_key_moved_to_another_person_is_not_unwrapped(recorder: PostgresRecorder, owner_url: str) -> None:
    recorder.keys.made(WILLY)
    with psycopg.connect(owner_url) as owner:
        owner.execute("UPDATE log.person_keys SET person = %s", (CHARLIE,))
    with pytest.raises(WrongSetting, match=CHARLIE):
        recorder.keys.standing([CHARLIE])


# --- the cache -----------------------------------------------------------------------------------------------------


def counting(recorder: PostgresRecorder) -> tuple[PostgresPersonKeys, list[str]]:
    """Return keys as another process has them, and the queries that they run."""
    asked: list[str] = []

    def ask(query: str, parameters: dict[str, Any]) -> Sequence[Any]:
        asked.append(query)
        return recorder._rows(query, parameters)

    return PostgresPersonKeys(ask, MASTER_KEY), asked


def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the cache's clock."""

    def put(seconds: float) -> None:
        monkeypatch.setattr("infra.personal_data.postgres_person_keys.monotonic", lambda: 1_000.0 + seconds)

    put(0)
    return put


def test_another_process_uses_an_erased_key_for_five_seconds_at_most(
    recorder: PostgresRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = at(monkeypatch)
    elsewhere, _ = counting(recorder)
    key = elsewhere.made(WILLY)
    recorder.keys.destroy(WILLY)

    put(4.9)
    assert elsewhere.standing([WILLY]) == {WILLY: key}
    put(5.0)
    assert elsewhere.standing([WILLY]) == {}
    assert elsewhere.made(WILLY) is None


def test_in_the_erasing_process_the_key_is_gone_at_once(recorder: PostgresRecorder) -> None:
    recorder.keys.made(WILLY)
    recorder.keys.destroy(WILLY)
    assert recorder.keys.standing([WILLY]) == {}


def test_keys_are_queried_together_and_once_per_cache_period(
    recorder: PostgresRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = at(monkeypatch)
    persons = [f"acme/oompa-{n}" for n in range(50)]
    for person in persons:
        recorder.keys.made(person)
    elsewhere, asked = counting(recorder)
    for _ in range(3):
        assert len(elsewhere.standing(persons)) == 50
    assert len(asked) == 1
    put(6)
    elsewhere.standing(persons)
    assert len(asked) == 2


def test_a_person_without_a_key_is_not_cached_as_erased(recorder: PostgresRecorder) -> None:
    """Otherwise data that another process writes about a new person would look erased here for a while."""
    elsewhere, _ = counting(recorder)
    assert elsewhere.standing([WILLY]) == {}
    key = recorder.keys.made(WILLY)
    assert elsewhere.standing([WILLY]) == {WILLY: key}


def test_an_expired_key_is_evicted(recorder: PostgresRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    for person in ("acme/wonka", "acme/bucket"):
        recorder.keys.made(person)
    assert set(recorder.keys._cache) == {"acme/wonka", "acme/bucket"}
    later = time.monotonic() + CACHED_S
    monkeypatch.setattr("infra.personal_data.postgres_person_keys.monotonic", lambda: later)
    recorder.keys.standing(["acme/bucket"])
    assert set(recorder.keys._cache) == {"acme/bucket"}


def test_the_cache_does_not_grow_without_bounds(recorder: PostgresRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.personal_data.postgres_person_keys.CACHED_KEYS_MAX", 10)
    for n in range(25):
        recorder.keys.made(f"acme/oompa-{n}")
    assert len(recorder.keys._cache) == 10
    assert "acme/oompa-24" in recorder.keys._cache


def test_a_page_of_the_log_gets_its_keys_in_one_query(
    postgres: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(postgres, *(but(wonka_added, receiver_id=f"oompa-{n}") for n in range(30)))
    with PostgresRecorder(database_url, master_key=MASTER_KEY) as recorder:
        recorder.keys, asked = counting(recorder)
        assert len(Log(recorder).read(0, limit=100)) == 30
    assert len(asked) == 1


# --- permissions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [PROJECTOR, AUDITOR])
@pytest.mark.parametrize(
    "statement",
    ["SELECT * FROM log.person_keys", "SELECT log.destroy_key('acme/wonka')", "DELETE FROM log.person_keys"],
)
def test_projector_and_auditor_have_no_access_to_keys(database_url: str, role: str, statement: str) -> None:
    with connect(database_url, role) as conn, pytest.raises(InsufficientPrivilege):
        conn.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log.person_keys SET wrapped = 'forged'",
        "UPDATE log.person_keys SET wrapped = 'forged', erased_at = NULL",
        "DELETE FROM log.person_keys",
        "TRUNCATE log.person_keys",
        "INSERT INTO log.person_keys (person) VALUES ('acme/wonka') ON CONFLICT (person) DO UPDATE SET wrapped = 'x'",
    ],
)
def test_the_writer_reads_and_adds_keys_and_changes_none(
    recorder: PostgresRecorder, database_url: str, statement: str
) -> None:
    recorder.keys.made(WILLY)
    with connect(database_url, WRITER) as writer, pytest.raises(InsufficientPrivilege):
        writer.execute(statement.encode())


def test_an_auditor_sees_whose_data_is_encrypted_but_not_the_data(postgres: Log, database_url: str) -> None:
    append(postgres, opened, wonka_added)
    with connect(database_url, AUDITOR) as auditor:
        row = auditor.execute("SELECT state FROM log.history WHERE position = 2").fetchone()
    assert row
    assert row["state"]["contact"]["person"] == WILLY
    assert "Willy" not in str(row)


# --- faults --------------------------------------------------------------------------------------------------------


def test_if_keys_cannot_be_queried_nothing_looks_erased(
    postgres: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(postgres, opened, wonka_added)
    with PostgresRecorder(database_url, master_key=MASTER_KEY) as recorder:

        def cut(query: str, parameters: dict[str, Any]) -> Sequence[Any]:
            raise OperationalError("the connection was lost")

        recorder.keys = PostgresPersonKeys(cut, MASTER_KEY)
        with pytest.raises(LogUnavailable, match="the connection was lost"):
            Log(recorder).load("account-acme")
