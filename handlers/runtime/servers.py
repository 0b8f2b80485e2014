"""PostgreSQL and NATS: those that the settings name, or embedded servers with their data in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json, to_json

from infra.postgres.connections import DatabaseUnavailable, connect
from infra.postgres.migrate import AnotherVersion, migrate
from infra.postgres.roles import admit, program_login
from infra.servers.embedded_nats import embedded_nats
from infra.servers.embedded_postgres import embedded_postgres
from infra.settings import Settings, WrongSetting

RUNNING = "running.json"


@dataclass(frozen=True)
class Servers:
    """The addresses of PostgreSQL and NATS. The database is migrated, and its address has the login of the program."""

    database_url: str
    nats_url: str


@contextmanager
def open_servers(settings: Settings, directory: Path) -> Iterator[Servers]:
    """Yield the servers that the settings name, and embedded ones for the rest, with their data in ``directory``.

    While they run, a file in ``directory`` holds their addresses, for other processes that use the same data.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = Servers(
            prepared(settings) if settings.database_url else stack.enter_context(_embedded(directory))[1],
            settings.nats_url or stack.enter_context(embedded_nats(directory / "nats")),
        )
        running = directory / RUNNING
        stack.callback(running.unlink, missing_ok=True)
        unfinished = running.with_suffix(".unfinished")
        unfinished.touch(mode=0o600)
        unfinished.write_bytes(to_json(servers))
        unfinished.rename(running)  # readers find all of it or nothing
        yield servers


def prepared(settings: Settings) -> str:
    """Return the database of the settings. If they name its owner, it is migrated, and the login created."""
    assert settings.database_url is not None
    if settings.owner_url:
        migrate(settings.owner_url)
        admit(settings.owner_url, settings.database_url)
    return settings.database_url


@contextmanager
def _embedded(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the addresses of an embedded server, for its owner and for the program.

    Nobody else uses it, so each start migrates it and creates a new password for the login.
    """
    with embedded_postgres(directory / "postgres") as owner_url:
        database_url = program_login(owner_url)
        try:
            migrate(owner_url)
        except AnotherVersion:
            raise AnotherVersion(f"The database in {directory}") from None
        admit(owner_url, database_url)
        yield owner_url, database_url


def _running_in(directory: Path) -> Servers | None:
    """Return the servers that a process runs in ``directory``, or None if none does."""
    try:
        servers = Servers(**from_json((directory / RUNNING).read_bytes()))
        connect(servers.database_url).close()
    except (FileNotFoundError, DatabaseUnavailable):
        return None
    return servers


@contextmanager
def broker_url(settings: Settings, directory: Path | None) -> Iterator[str]:
    """Yield the address of NATS: from the settings, or of a server with its data in ``directory``.

    Raises:
        WrongSetting: neither is given, or both.
        ServerDidNotStart: the server cannot be started.
    """
    if settings.nats_url:
        _require_no_data("TRUNKLINE_NATS_URL", directory, "nats")
        yield settings.nats_url
    elif directory is None:
        raise WrongSetting("No broker is given; set TRUNKLINE_NATS_URL, or give --data DIRECTORY.")
    elif not (directory / "nats").is_dir():
        raise WrongSetting(f"There is no data of Trunkline in {directory}; trunkline up --data {directory} creates it.")
    elif servers := _running_in(directory):
        yield servers.nats_url
    else:
        with embedded_nats(directory / "nats") as url:
            yield url


@contextmanager
def database(settings: Settings, directory: Path | None) -> Iterator[str]:
    """Yield the address of a migrated database: from the settings, or of a server with its data in ``directory``.

    Raises:
        WrongSetting: neither is given, or both.
        DatabaseUnavailable, ServerDidNotStart: it cannot be reached, or started.
    """
    with ExitStack() as stack:
        if settings.database_url:
            _require_no_data("TRUNKLINE_DATABASE_URL", directory, "postgres")
            database_url = settings.database_url
        else:
            running = _running_in(data := _with_data(directory))
            database_url = running.database_url if running else stack.enter_context(_embedded(data))[1]
        yield database_url


@contextmanager
def owner_and_login(settings: Settings, directory: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the addresses of a database for its owner, who may change what no other login may, and for the program.

    Raises:
        WrongSetting: neither is given, or both; or a running Trunkline uses the data and would miss the change.
        DatabaseUnavailable, ServerDidNotStart: as for `database`.
    """
    if settings.database_url:
        _require_no_data("TRUNKLINE_DATABASE_URL", directory, "postgres")
        if not settings.owner_url:
            raise WrongSetting("TRUNKLINE_OWNER_URL is missing: no other login may do this.")
        yield settings.owner_url, settings.database_url
        return
    data = _with_data(directory)
    if _running_in(data):
        raise WrongSetting(f"A running Trunkline uses the data in {data}; stop it first.")
    with _embedded(data) as (owner_url, database_url):
        yield owner_url, database_url


@contextmanager
def database_and_broker(settings: Settings, directory: Path | None) -> Iterator[Servers]:
    """Yield database and broker, which commands that publish checkpoints need.

    Raises:
        WrongSetting, DatabaseUnavailable, ServerDidNotStart: as for `database`.
    """
    with ExitStack() as stack:
        if settings.database_url:
            _require_no_data("TRUNKLINE_DATABASE_URL", directory, "postgres")
            if not settings.nats_url:
                raise WrongSetting("TRUNKLINE_NATS_URL is missing: signed checkpoints are published there.")
            servers = Servers(settings.database_url, settings.nats_url)
        else:
            data = _with_data(directory)
            servers = _running_in(data) or stack.enter_context(open_servers(settings, data))
        yield servers


def _require_no_data(setting: str, directory: Path | None, server: str) -> None:
    """Check that a directory holds no data of its own. It may hold keys for servers that the settings name."""
    if directory is not None and not directory.is_dir():
        raise WrongSetting(f"There is no directory {directory}.")
    if directory is not None and (directory / server).is_dir():
        raise WrongSetting(
            f"{setting} is set, but {directory} has data of its own; unset {setting}, or leave out --data."
        )


def _with_data(directory: Path | None) -> Path:
    if directory is None:
        raise WrongSetting("No database is given; set TRUNKLINE_DATABASE_URL, or give --data DIRECTORY.")
    if not (directory / "postgres").is_dir():
        raise WrongSetting(
            f"There is no data of Trunkline in {directory}; trunkline demo --keep {directory} creates some."
        )
    return directory
