"""How tests run: on which servers, in how many processes, and with temporary files in memory.

The servers are fixtures of `tests.support.servers`. Tests of the domain do not load it, so that one of them takes a
second.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support.given_projection")  # here, because tests of several folders import it
DOMAIN = Path(__file__).parent / "domain"
SERVERS = ("TRUNKLINE_DATABASE_URL", "TRUNKLINE_NATS_URL")
MEMORY = Path("/dev/shm")  # noqa: S108 - every name in it is new
ROOM_BYTES = 8 * 2**30  # a run needs at most a third of it
GIVEN = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="check properties over more examples")
    parser.addoption("--containers", action="store_true", help="run on PostgreSQL and NATS in Docker")


def pytest_configure(config: pytest.Config) -> None:
    """Remove the settings from the environment: some name the servers, and tests must not depend on the others."""
    names = [name for name in os.environ if name.upper().startswith("TRUNKLINE_")]
    config.stash[GIVEN] = {name.upper(): os.environ.pop(name) for name in names}
    if config.getoption("--containers"):
        _check_docker()
    _use_memory_for_temporary_files()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Load what the tests of a module need: the fixtures of servers, except for the domain; a profile of Hypothesis."""
    if not isinstance(collector, pytest.Module):
        return
    if DOMAIN not in collector.path.parents:
        collector.config.pluginmanager.import_plugin("tests.support.servers")
    if b"hypothesis" in collector.path.read_bytes():
        _load_profile(300 if collector.config.getoption("--thorough") else 50)


@cache
def _load_profile(max_examples: int) -> None:
    from hypothesis import settings  # noqa: PLC0415 - slow to load, and most tests of the domain do without

    settings.register_profile("ours", max_examples=max_examples)
    settings.load_profile("ours")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return two processes per core: each has its own embedded servers, and its tests mostly wait for them.

    Servers that settings name, or that run in Docker, serve one process only. Tests of the domain alone are too fast to
    gain from a second process.
    """
    given = any(name.upper() in SERVERS for name in os.environ)
    only_domain = all(DOMAIN in (config.invocation_params.dir / name).resolve().parents for name in config.args)
    return 0 if config.getoption("--containers") or given or only_domain else 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Exclude all modules and collected tests from garbage collection."""
    gc.collect()
    gc.freeze()


def _use_memory_for_temporary_files() -> None:
    """Keep temporary directories in memory if there is room, unless TMPDIR is set.

    A database has some 400 small files, and a run creates and drops hundreds of databases, which is most of its disk
    I/O. Tests prove the same as on a disk: the page cache, too, survives a killed process.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        return
    os.environ["TMPDIR"] = str(MEMORY)  # for processes that tests start
    tempfile.tempdir = str(MEMORY)  # for this process


def _check_docker() -> None:
    from docker.errors import DockerException  # type: ignore[import-untyped]  # noqa: PLC0415 - for --containers
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415

    try:
        DockerClient(timeout=10).client.close()
    except DockerException as error:
        raise pytest.UsageError(
            f"--containers needs Docker, which does not answer, so these tests did NOT run. ({error})"
        ) from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"servers: {_servers(config)}"


def _servers(config: pytest.Config) -> str:
    if config.getoption("--containers"):
        return "in Docker (testcontainers)"
    given = [name for name in SERVERS if config.stash[GIVEN].get(name)]
    return f"at {' and '.join(given)}" if given else "embedded"
