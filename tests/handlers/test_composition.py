"""Secrets: given, or made once and kept beside an embedded database."""

from __future__ import annotations

import stat
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from handlers.composition import Secrets, link_secret, master_key, secrets_of
from infra.settings import WrongSetting, settings

GIVEN = b64encode(32 * b"w").decode()
ELSEWHERE = "postgresql://wonka@factory/chocolate"


def test_a_master_key_that_is_given_is_taken(tmp_path: Path) -> None:
    assert master_key(settings(master_key=GIVEN), tmp_path) == 32 * b"w"
    assert master_key(settings(master_key=GIVEN, database_url=ELSEWHERE), None) == 32 * b"w"
    assert list(tmp_path.iterdir()) == []


def test_beside_an_embedded_database_one_is_made_kept_and_shown_to_nobody(tmp_path: Path) -> None:
    made = master_key(settings(), tmp_path)
    assert made is not None
    assert len(made) == 32
    assert master_key(settings(), tmp_path) == made
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_of_many_that_make_one_at_once_all_have_the_same(tmp_path: Path) -> None:
    begin = Barrier(8)

    def one(_: int) -> bytes | None:
        begin.wait()
        return master_key(settings(), tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master-key"]


def test_for_a_database_elsewhere_none_is_made_by_the_way(tmp_path: Path) -> None:
    """It would be lost with the directory, and with it all personal data in that database."""
    given = settings(database_url=ELSEWHERE, link_secret="s" * 32)
    assert master_key(given, tmp_path) is None
    with pytest.raises(WrongSetting, match=r"^TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes"):
        secrets_of(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_trunkline_has_both_secrets(tmp_path: Path) -> None:
    secrets = secrets_of(settings(), tmp_path)
    assert secrets == Secrets(link_secret(settings(), tmp_path), master_key(settings(), tmp_path) or b"")
    assert secrets.link != secrets.master
