"""Houses to try handlers in: one in memory, and the real thing on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.at_work import AtWork, at_work, without_streams
from tests.support.command_line import Run, runner
from tests.support.databases import ServerPlaces, as_program, fresh_database
from tests.support.in_memory import InMemory


@pytest.fixture
def store() -> InMemory:
    """A house in memory, in which nothing has happened yet."""
    return InMemory()


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``trunkline`` with arguments, in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def trunkline(database_url: str, nats_url: str) -> Iterator[AtWork]:
    """The whole composition on real servers, for one test; ACME and its package are there."""
    with at_work(database_url, nats_url) as work:
        yield work


@pytest.fixture(scope="module")
def shop(places: ServerPlaces, template: str) -> Iterator[AtWork]:
    """The whole composition on real servers, for the tests of a file, each of which orders something of its own."""
    with (
        fresh_database(places, template) as owner_url,
        at_work(as_program(owner_url), without_streams(places.nats_url)) as work,
    ):
        yield work
