"""The suite itself: tests of the domain load no slow modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_tests_of_the_domain_load_neither_servers_nor_libraries() -> None:
    assert loaded_by("--numprocesses", "auto", "--collect-only", "tests/domain") == []
