"""The servers that tests run on: embedded by default, in Docker with ``--containers``, or at given URLs.

Every test that needs a database gets one of its own, copied from a migrated template; every test that needs NATS finds
it without streams. The root conftest loads this plugin for all tests but those of the domain, which need no server.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import nats
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console

from handlers.demo.environment import demo_environment
from handlers.demo.story import Story
from infra.event_log.log import Log
from infra.event_log.memory_recorder import MemoryRecorder
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit
from infra.servers.embedded_nats import embedded_nats
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from infra.settings import settings
from tests.conftest import GIVEN
from tests.support.databases import MASTER_KEY, as_program, fresh_database
from tests.support.showing import Showing

# Each client of HTTP or SMTP creates one, which takes it 20 ms.
ssl.create_default_context = cache(ssl.create_default_context)  # type: ignore[assignment]


@dataclass(frozen=True)
class SessionServers:
    """Where the servers are. The database at `database_url` is never written to; each test has one of its own."""

    database_url: str
    nats_url: str


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[SessionServers]:
    """PostgreSQL and NATS, for the whole run."""
    with ExitStack() as stack:
        if pytestconfig.getoption("--containers"):
            yield _containers(stack)
            return
        directory = stack.enter_context(temporary_directory())
        given = pytestconfig.stash[GIVEN]
        yield SessionServers(
            given.get("TRUNKLINE_DATABASE_URL")
            or _hurried(stack.enter_context(embedded_postgres(directory / "postgres"))),
            given.get("TRUNKLINE_NATS_URL") or stack.enter_context(embedded_nats(directory / "nats")),
        )


def _hurried(owner_url: str) -> str:
    """Save the work that only a crash of the machine would need: here processes die, and no machine does."""
    with psycopg.connect(owner_url, autocommit=True) as conn:
        for setting in ("fsync", "full_page_writes", "jit"):
            conn.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        conn.execute("SELECT pg_reload_conf()")
    return owner_url


def _containers(stack: ExitStack) -> SessionServers:
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - only this way needs Docker
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    database = PostgresContainer("postgres:18", username="trunkline", dbname="trunkline", driver=None)
    postgres = stack.enter_context(database.with_env("LANG", "C.UTF-8"))  # sorts as the embedded server does
    broker = DockerContainer("nats:2").with_command("--jetstream").with_exposed_ports(4222)
    broker.waiting_for(LogMessageWaitStrategy("Server is ready"))
    stack.enter_context(broker)
    nats_url = f"nats://{broker.get_container_host_ip()}:{broker.get_exposed_port(4222)}"
    return SessionServers(postgres.get_connection_url(), nats_url)


@pytest.fixture(scope="session")
def template(servers: SessionServers) -> Iterator[str]:
    """The name of a migrated, empty database, where the program has a login."""
    with fresh_database(servers) as owner_url:
        migrate(owner_url)
        admit(owner_url, as_program(owner_url))
        yield str(conninfo_to_dict(owner_url)["dbname"])


@pytest.fixture
def owner_url(servers: SessionServers, template: str) -> Iterator[str]:
    """A migrated, empty database of the test's own, as its owner."""
    with fresh_database(servers, template) as url:
        yield url


@pytest.fixture
def database_url(owner_url: str) -> str:
    """The same, with the program's login."""
    return as_program(owner_url)


@pytest.fixture
def nats_url(servers: SessionServers) -> str:
    """NATS, with no stream."""
    asyncio.run(_without_streams(servers.nats_url))
    return servers.nats_url


async def _without_streams(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    jetstream = client.jetstream()
    for stream in await jetstream.streams_info():
        await jetstream.delete_stream(stream.config.name or "")
    await client.close()


@pytest.fixture
def postgres(database_url: str) -> Iterator[Log]:
    """The log in PostgreSQL."""
    with postgres_log(database_url, master_key=MASTER_KEY) as log:
        yield log


@pytest.fixture
def memory() -> Log:
    """The log in memory."""
    return Log(MemoryRecorder())


@pytest.fixture(params=["memory", "postgres"])
def log(request: pytest.FixtureRequest) -> Log:
    """The log, both ways."""
    found: Log = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def showing(servers: SessionServers, template: str) -> Iterator[Showing]:
    """The demonstration, shown once on a database of its own, for all tests that look at it."""
    with fresh_database(servers, template) as owner_url:
        url = as_program(owner_url)
        asyncio.run(_without_streams(servers.nats_url))
        told = io.StringIO()
        given = settings(database_url=url, nats_url=servers.nats_url, master_key=b64encode(MASTER_KEY).decode())
        with demo_environment(given, None) as environment:
            end = Story(environment, Console(file=told, width=160)).tell()
        yield Showing(told.getvalue(), end, url)
