"""Applications to test handlers with: one in memory, and the whole composition on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.at_work import AtWork, at_work, without_streams
from tests.support.command_line import Run, runner
from tests.support.databases import ServerAddresses, as_program, fresh_database
from tests.support.in_memory import InMemory


@pytest.fixture
def store() -> InMemory:
    """An in-memory application with an empty log."""
    return InMemory()


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``trunkline`` with arguments, in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def trunkline(database_url: str, nats_url: str) -> Iterator[AtWork]:
    """The whole composition on real servers, for one test; ACME and its package exist."""
    with at_work(database_url, nats_url) as work:
        yield work


@pytest.fixture(scope="module")
def shop(servers: ServerAddresses, template: str) -> Iterator[AtWork]:
    """The whole composition on real servers, shared by the tests of a file; each test places its own orders."""
    with (
        fresh_database(servers, template) as owner_url,
        at_work(as_program(owner_url), without_streams(servers.nats_url)) as work,
    ):
        yield work
