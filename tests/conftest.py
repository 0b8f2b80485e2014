"""How tests run: where their servers are, how many processes there are, and where temporary files go.

The servers themselves are fixtures of `tests.support.servers`, which is loaded for all tests but those of the domain:
so that one of these takes a second.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support.given_projection")  # here, for tests of other folders take it too
DOMAIN = Path(__file__).parent / "domain"
SERVERS = ("TRUNKLINE_DATABASE_URL", "TRUNKLINE_NATS_URL")
MEMORY = Path("/dev/shm")  # noqa: S108 - every name below it is a fresh one
ROOM_BYTES = 8 * 2**30  # a run takes at most a third of that
GIVEN = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--containers", action="store_true", help="run on PostgreSQL and NATS in Docker")


def pytest_configure(config: pytest.Config) -> None:
    """Take the settings out of the environment: they name the servers, and no test may see the others."""
    names = [name for name in os.environ if name.upper().startswith("TRUNKLINE_")]
    config.stash[GIVEN] = {name.upper(): os.environ.pop(name) for name in names}
    if config.getoption("--containers"):
        _docker_answers()
    _keep_in_memory()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Load the fixtures of servers, unless only tests of the domain are collected."""
    if isinstance(collector, pytest.Module) and DOMAIN not in collector.path.parents:
        collector.config.pluginmanager.import_plugin("tests.support.servers")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return two processes a core: each has embedded servers of its own, for which its tests mostly wait.

    Servers that are given, or in Docker, are for one process; and tests of the domain alone are not worth a second one.
    """
    given = any(name.upper() in SERVERS for name in os.environ)
    only_domain = all(DOMAIN in (config.invocation_params.dir / name).resolve().parents for name in config.args)
    return 0 if config.getoption("--containers") or given or only_domain else 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests first, so that no process works alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Exclude all modules and tests from garbage collection."""
    gc.collect()
    gc.freeze()


def _keep_in_memory() -> None:
    """Keep temporary directories in memory if there is room, unless TMPDIR names another place.

    A database is some 400 small files, and hundreds are created and dropped: most of the work of a disk here. Tests
    prove the same: the page cache, too, survives a process that is killed.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        return
    os.environ["TMPDIR"] = str(MEMORY)  # for the programs that tests start
    tempfile.tempdir = str(MEMORY)  # and for this one


def _docker_answers() -> None:
    from docker.errors import DockerException  # type: ignore[import-untyped]  # noqa: PLC0415 - only this way needs it
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415

    try:
        DockerClient(timeout=10).client.close()
    except DockerException as error:
        raise pytest.UsageError(
            f"Docker does not answer, and --containers needs it, so these tests did NOT run. ({error})"
        ) from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"servers: {_way(config)}"


def _way(config: pytest.Config) -> str:
    if config.getoption("--containers"):
        return "in Docker, by testcontainers"
    given = [name for name in SERVERS if config.stash[GIVEN].get(name)]
    return f"at {' and '.join(given)}" if given else "embedded"
