"""Secrets: from the settings, or generated once and stored beside an embedded database."""

from __future__ import annotations

import stat
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from handlers.runtime.secrets import Secrets, link_secret, master_key, next_master_key, secrets_of
from handlers.runtime.servers import open_servers
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import PostgresRecorder, postgres_log
from infra.servers.embedded_postgres import temporary_directory
from infra.settings import WrongSetting, settings
from tests.infra.personal_data.test_person_keys import append, contact
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY
from tests.support.examples import WONKA, opened, wonka_added

GIVEN = b64encode(32 * b"w").decode()
ELSEWHERE = "postgresql://wonka@factory/chocolate"


def test_a_given_master_key_is_used(tmp_path: Path) -> None:
    assert master_key(settings(master_key=GIVEN), tmp_path) == 32 * b"w"
    assert master_key(settings(master_key=GIVEN, database_url=ELSEWHERE), None) == 32 * b"w"
    assert list(tmp_path.iterdir()) == []


def test_beside_an_embedded_database_one_is_generated_stored_and_kept_private(tmp_path: Path) -> None:
    made = master_key(settings(), tmp_path)
    assert made is not None
    assert len(made) == 32
    assert master_key(settings(), tmp_path) == made
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_processes_that_generate_one_at_once_share_the_same(tmp_path: Path) -> None:
    begin = Barrier(8)

    def one(_: int) -> bytes | None:
        begin.wait()
        return master_key(settings(), tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master-key"]


def test_for_an_external_database_none_is_generated(tmp_path: Path) -> None:
    """It would be lost with the directory, and all personal data in that database with it."""
    given = settings(database_url=ELSEWHERE, link_secret="s" * 32)
    assert master_key(given, tmp_path) is None
    with pytest.raises(WrongSetting, match=r"^TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes"):
        secrets_of(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_trunkline_has_both_secrets(tmp_path: Path) -> None:
    secrets = secrets_of(settings(), tmp_path)
    assert secrets == Secrets(link_secret(settings(), tmp_path), master_key(settings(), tmp_path) or b"")
    assert secrets.link != secrets.master


# --- another master key --------------------------------------------------------------------------------------------

NEW = MASTER_KEY[::-1]


@pytest.fixture(name="rewrap")
def _rewrap(command_line: Run) -> Run:
    """Run ``trunkline privacy rewrap``. Returns exit status, stdout and stderr."""
    return partial(command_line, "privacy", "rewrap")


def test_a_directory_has_both_keys_until_all_is_rewrapped_and_then_only_the_new_one(tmp_path: Path) -> None:
    old = master_key(settings(), tmp_path)
    with next_master_key(settings(), tmp_path) as both:
        assert master_key(settings(), tmp_path) == both
        assert (len(both), both[32:]) == (64, old)
    assert master_key(settings(), tmp_path) == both[:32] != old
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_an_interrupted_rewrap_continues_with_the_same_new_key(tmp_path: Path) -> None:
    master_key(settings(), tmp_path)
    with pytest.raises(KeyboardInterrupt), next_master_key(settings(), tmp_path) as both:
        raise KeyboardInterrupt
    assert master_key(settings(), tmp_path) == both

    with next_master_key(settings(), tmp_path) as again:
        assert again == both
    assert master_key(settings(), tmp_path) == both[:32]


def test_the_command_rewraps_the_keys_of_a_database(
    postgres: Log, database_url: str, owner_url: str, rewrap: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(postgres, opened, wonka_added)
    monkeypatch.setenv("TRUNKLINE_DATABASE_URL", database_url)
    monkeypatch.setenv("TRUNKLINE_MASTER_KEY", f"{b64encode(NEW).decode()},{b64encode(MASTER_KEY).decode()}")
    assert rewrap() == (1, "", "TRUNKLINE_OWNER_URL is missing: no other login may do this.\n")

    monkeypatch.setenv("TRUNKLINE_OWNER_URL", owner_url)
    said = " with the new master key; no other key opens them.\n"
    assert rewrap() == (0, f"1 key was wrapped{said}", "")
    assert rewrap() == (0, f"No key had to be wrapped{said}", "")
    with postgres_log(database_url, master_key=NEW) as afterwards:
        assert contact(afterwards) == WONKA

    monkeypatch.delenv("TRUNKLINE_MASTER_KEY")
    status, _, complaint = rewrap()
    assert (status, complaint[:32]) == (1, "TRUNKLINE_MASTER_KEY is missing:")


def test_the_command_gives_a_directory_a_new_key_unless_a_trunkline_runs_there(rewrap: Run) -> None:
    with temporary_directory() as directory:
        old = master_key(settings(), directory)
        with open_servers(settings(), directory) as servers:
            with PostgresRecorder(servers.database_url, master_key=old) as recorder:
                made = recorder.keys.made("acme/wonka")
            running = f"A running Trunkline uses the data in {directory}; stop it first.\n"
            assert rewrap("--data", str(directory)) == (1, "", running)

        status, output, _ = rewrap("--data", str(directory))
        assert (status, output[:22]) == (0, "1 key was wrapped with")
        new = master_key(settings(), directory)
        assert new != old
        with (
            open_servers(settings(), directory) as servers,
            PostgresRecorder(servers.database_url, master_key=new) as recorder,
        ):
            assert recorder.keys.standing(["acme/wonka"]) == {"acme/wonka": made}
