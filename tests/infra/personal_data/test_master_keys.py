"""Rotation of the master key: no data ever becomes unreadable, and no erased data comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

import infra.personal_data.master_keys
from domain.account import ERASED_CONTACT
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import PostgresRecorder, postgres_log
from infra.personal_data.master_keys import MasterKeys, rewrap
from infra.postgres.connections import owning
from infra.settings import WrongSetting
from tests.infra.personal_data.test_person_keys import append, contact
from tests.support.databases import MASTER_KEY
from tests.support.examples import WONKA, bucket_added, opened, wonka_added

NEW = MASTER_KEY[::-1]
PERSONS = [f"acme/person-{number}" for number in range(5)]


@pytest.fixture(name="owner")
def _owner(owner_url: str) -> Iterator[Connection[DictRow]]:
    with owning(owner_url) as owner:
        yield owner


@pytest.fixture(name="made")
def _made(database_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | None]:
    """The keys of five persons, wrapped with the old master key, for rotation in pages of two."""
    monkeypatch.setattr(infra.personal_data.master_keys, "KEYS_PER_PAGE", 2)
    with PostgresRecorder(database_url, master_key=MASTER_KEY) as recorder:
        return {person: recorder.keys.made(person) for person in PERSONS}


def standing(database_url: str, master_key: bytes) -> dict[str, bytes]:
    with PostgresRecorder(database_url, master_key=master_key) as recorder:
        return dict(recorder.keys.standing(PERSONS))


def test_the_first_master_key_wraps_and_each_unwraps() -> None:
    wrapped = MasterKeys(NEW + MASTER_KEY).wrapped("acme/wonka", b"k" * 32)

    assert MasterKeys(NEW).unwrapped("acme/wonka", wrapped) == b"k" * 32
    assert MasterKeys(MASTER_KEY + NEW).unwrapped("acme/wonka", wrapped) == b"k" * 32
    with pytest.raises(WrongSetting, match="is not the one that the key of acme/wonka was wrapped with"):
        MasterKeys(MASTER_KEY).unwrapped("acme/wonka", wrapped)
    with pytest.raises(WrongSetting, match="is not the one"):
        MasterKeys(NEW + MASTER_KEY).unwrapped("acme/bucket", wrapped)


def test_after_rotation_only_the_new_key_unwraps(
    database_url: str, owner: Connection[DictRow], made: dict[str, bytes | None]
) -> None:
    progress: list[tuple[int, int]] = []
    assert rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *so_far: progress.append(so_far)) == 5

    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert standing(database_url, NEW) == made
    with pytest.raises(WrongSetting, match="is not the one"):
        standing(database_url, MASTER_KEY)


def test_a_log_reads_the_same_after_rotation(postgres: Log, database_url: str, owner: Connection[DictRow]) -> None:
    append(postgres, opened, wonka_added)
    rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *_: None)

    with postgres_log(database_url, master_key=NEW) as afterwards:
        assert contact(afterwards) == WONKA
        append(afterwards, bucket_added, after=2)


def test_during_rotation_processes_work_with_both_keys(
    database_url: str, owner: Connection[DictRow], made: dict[str, bytes | None]
) -> None:
    """Also processes that still have the old key first."""
    for master_key in (MASTER_KEY + NEW, NEW + MASTER_KEY):
        with PostgresRecorder(database_url, master_key=master_key) as recorder:
            seen: list[dict[str, bytes]] = []

            def look(*_: int, keys: PostgresRecorder = recorder, seen: list[dict[str, bytes]] = seen) -> None:
                keys.keys._cache.clear()
                seen.append(dict(keys.keys.standing(PERSONS)))

            rewrap(owner, MasterKeys(NEW + MASTER_KEY), look)
            assert seen == [made] * 3


def test_an_interrupted_rotation_loses_nothing_and_resumes(
    database_url: str, owner: Connection[DictRow], made: dict[str, bytes | None]
) -> None:
    def interrupt(looked_at: int, _: int) -> None:
        if looked_at == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrap(owner, MasterKeys(NEW + MASTER_KEY), interrupt)
    assert standing(database_url, NEW + MASTER_KEY) == made

    assert rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *_: None) == 1
    assert rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *_: None) == 0
    assert standing(database_url, NEW) == made


def test_a_person_erased_during_rotation_stays_erased(
    database_url: str, owner_url: str, made: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erasure happens between the read and the write of the key."""
    rewrapped = MasterKeys.rewrapped

    def erase_first(keys: MasterKeys, person: str, wrapped: bytes) -> bytes | None:
        if person == PERSONS[3]:
            with PostgresRecorder(database_url) as elsewhere:
                assert elsewhere.keys.destroy(person)
        return rewrapped(keys, person, wrapped)

    monkeypatch.setattr(MasterKeys, "rewrapped", erase_first)
    with owning(owner_url) as owner:
        rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *_: None)

    assert standing(database_url, NEW) == {person: key for person, key in made.items() if person != PERSONS[3]}
    with PostgresRecorder(database_url, master_key=NEW) as recorder:
        assert recorder.keys.made(PERSONS[3]) is None


def test_an_erased_person_is_skipped(postgres: Log, database_url: str, owner: Connection[DictRow]) -> None:
    append(postgres, opened, wonka_added)
    postgres.destroy_key("acme/wonka")
    assert rewrap(owner, MasterKeys(NEW + MASTER_KEY), lambda *_: None) == 0

    with postgres_log(database_url, master_key=NEW) as afterwards:
        assert contact(afterwards) == ERASED_CONTACT


def test_without_the_old_key_nothing_changes(
    database_url: str, owner: Connection[DictRow], made: dict[str, bytes | None]
) -> None:
    with pytest.raises(WrongSetting, match="is not the one that the key of acme/person-0 was wrapped with"):
        rewrap(owner, MasterKeys(NEW), lambda *_: None)
    assert standing(database_url, MASTER_KEY) == made
