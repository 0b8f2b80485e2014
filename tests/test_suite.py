"""The suite itself: tests of the domain load no slow modules, and all other tests have the fixtures of servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = ("eventsourcing", "fastapi", "faststream", "handlers", "infra", "nats", "psycopg", "rich", "typer")
LOADED = """
import sys, pytest
status = pytest.main(sys.argv[1:])
print("loaded:", *(name for name in {slow} if name in sys.modules))
sys.exit(status)
"""


def loaded_by(*arguments: str) -> list[str]:
    """Return the slow modules that a run of pytest loads."""
    code = LOADED.format(slow=SLOW)
    run = subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.rpartition("loaded:")[2].split()


@pytest.mark.parametrize("path", ["tests/domain/test_money.py", "tests/domain"])
def test_tests_of_the_domain_load_neither_servers_nor_libraries(path: str) -> None:
    options = ("--collect-only",) if path == "tests/domain" else ()
    assert loaded_by("--numprocesses", "auto", *options, path) == []


def test_all_other_tests_have_the_fixtures_of_servers() -> None:
    assert "psycopg" in loaded_by("--fixtures-per-test", "tests/infra/event_log/test_log.py")
