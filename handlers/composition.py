"""How the parts are put together: servers, log, HTTP application, projections, worker."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from handlers.desk import House
from handlers.http import application
from handlers.signing import Signer
from handlers.worker import Worker, working
from infra.clock import Clock
from infra.ed25519 import SigningKey, WrongKey
from infra.embedded_nats import embedded_nats
from infra.embedded_postgres import embedded_postgres
from infra.log import Log
from infra.payments import PaymentProvider
from infra.postgres import DatabaseUnavailable, admit, connect, migrate, program_login
from infra.postgres_recorder import postgres_log
from infra.settings import MASTER_KEY_BYTES, Settings, WrongSetting, decoded_master_key
from infra.smtp import Mailer, SmtpMailer
from infra.uvicorn_thread import listening, serving, url_of
from projections.runner import Runner, running, statuses

RUNNING = "running.json"
SIGNING_KEY = "signing-key.pem"
CHECKPOINT_FILE = "checkpoints.jsonl"


@dataclass(frozen=True)
class Servers:
    """Where PostgreSQL and NATS are. The database is migrated, and the address that of the program's login."""

    database_url: str
    nats_url: str


@contextmanager
def servers(settings: Settings, directory: Path) -> Iterator[Servers]:
    """The servers that the settings name; those they do not name, embedded, with their data in ``directory``.

    While they run, ``directory`` says where they are, for whoever works on the same data beside us.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        places = Servers(
            prepared(settings) if settings.database_url else stack.enter_context(_embedded(directory)),
            settings.nats_url or stack.enter_context(embedded_nats(directory / "nats")),
        )
        running = directory / RUNNING
        stack.callback(running.unlink, missing_ok=True)
        unfinished = running.with_suffix(".unfinished")
        unfinished.touch(mode=0o600)
        unfinished.write_bytes(to_json(places))
        unfinished.rename(running)  # whoever reads it finds all of it
        yield places


def prepared(settings: Settings) -> str:
    """The database that the settings name; migrated, with its login, where they also name its owner."""
    assert settings.database_url is not None
    if settings.owner_url:
        migrate(settings.owner_url)
        admit(settings.owner_url, settings.database_url)
    return settings.database_url


@contextmanager
def _embedded(directory: Path) -> Iterator[str]:
    """A server of our own, which only ever serves us: so it is migrated at each start, and the login is made anew."""
    with embedded_postgres(directory / "postgres") as owner_url:
        database_url = program_login(owner_url)
        migrate(owner_url)
        admit(owner_url, database_url)
        yield database_url


def _running_in(directory: Path) -> Servers | None:
    """The servers that somebody runs in ``directory``; none where nobody does any longer."""
    try:
        places = Servers(**from_json((directory / RUNNING).read_bytes()))
        connect(places.database_url).close()
    except (FileNotFoundError, DatabaseUnavailable):
        return None
    return places


@contextmanager
def database(settings: Settings, directory: Path | None) -> Iterator[str]:
    """The address of a migrated database: the settings', or that of the servers whose data are in ``directory``.

    Raises:
        WrongSetting: neither is given.
        DatabaseUnavailable, ServerDidNotStart: it cannot be reached, or started.
    """
    with ExitStack() as stack:
        if settings.database_url:
            database_url = prepared(settings)
        else:
            running = _running_in(data := _with_data(directory))
            database_url = running.database_url if running else stack.enter_context(_embedded(data))
        yield database_url


@contextmanager
def database_and_broker(settings: Settings, directory: Path | None) -> Iterator[Servers]:
    """The same, and the broker beside it: what takes a checkpoint, which is published.

    Raises:
        WrongSetting, DatabaseUnavailable, ServerDidNotStart: as `database` does.
    """
    with ExitStack() as stack:
        if settings.database_url:
            if not settings.nats_url:
                raise WrongSetting("TRUNKLINE_NATS_URL is missing: signed checkpoints are published there.")
            places = Servers(prepared(settings), settings.nats_url)
        else:
            data = _with_data(directory)
            places = _running_in(data) or stack.enter_context(servers(settings, data))
        yield places


def _with_data(directory: Path | None) -> Path:
    if directory is None:
        raise WrongSetting("Say where the data are: set TRUNKLINE_DATABASE_URL, or give --data DIRECTORY.")
    if not (directory / "postgres").is_dir():
        raise WrongSetting(
            f"There are no data of Trunkline in {directory}; make some: trunkline demo --keep {directory}."
        )
    return directory


def link_secret(settings: Settings, directory: Path | None) -> bytes:
    """The secret behind invoice links: the setting, or one that is made once and kept in ``directory``.

    Raises:
        WrongSetting: neither is given. Every process must have the same, or links that one issues another cannot mail.
    """
    if settings.link_secret:
        return settings.link_secret.get_secret_value().encode()
    if directory is None:
        raise WrongSetting("TRUNKLINE_LINK_SECRET is missing: 32 characters or more, the same for every process.")
    return _kept(directory / "link-secret", 32)


def master_key(settings: Settings, directory: Path | None) -> bytes | None:
    """What wraps the keys of personal data: the setting, or one that is made once and kept beside an embedded database.

    None where there is neither. A database elsewhere may be other processes' too, and outlives our directories: so a
    key for it is never made by the way.
    """
    if settings.master_key:
        return decoded_master_key(settings.master_key)
    if directory is None or settings.database_url:
        return None
    return _kept(directory / "master-key", MASTER_KEY_BYTES)


def _kept(file: Path, size: int) -> bytes:
    """The bytes of a file that nobody else may read, made at random where it is not there; by two at once, once."""
    if not file.exists():
        made = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_bytes(size))
            new.flush()
            os.fsync(new.fileno())
        with suppress(FileExistsError):  # whoever is first is whose stays
            os.link(made, file)
        made.unlink()
    return file.read_bytes()


@dataclass(frozen=True)
class Secrets:
    """The secret behind invoice links, and the key that wraps the keys of personal data."""

    link: bytes
    master: bytes


def secrets_of(settings: Settings, directory: Path | None) -> Secrets:
    """The secrets of a whole Trunkline.

    Raises:
        WrongSetting: one of them is missing.
    """
    link, master = link_secret(settings, directory), master_key(settings, directory)
    if master is None:
        raise WrongSetting(
            "TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes, the same for every process on that database; "
            "openssl rand -base64 32 makes one."
        )
    return Secrets(link, master)


def signer_of(settings: Settings, directory: Path | None) -> Signer | None:
    """Who signs checkpoints: with the key of the settings, or one that is made once and kept beside embedded servers.

    None where there is neither: each process would sign with a key of its own, and nobody could tell them from others.

    Raises:
        WrongSetting: the key cannot be read.
    """
    embedded = directory if settings.database_url is None else None
    file = checkpoint_file(settings, directory)
    try:
        if settings.signing_key:
            return Signer(SigningKey.read(settings.signing_key), file)
        return Signer(SigningKey.kept_in(embedded / SIGNING_KEY), file) if embedded else None
    except WrongKey as error:
        raise WrongSetting(f"TRUNKLINE_SIGNING_KEY is wrong: {error}") from error


def checkpoint_file(settings: Settings, directory: Path | None) -> Path | None:
    """The file of signed checkpoints: the setting, or one beside embedded servers."""
    if settings.checkpoint_file or directory is None or settings.database_url:
        return settings.checkpoint_file
    return directory / CHECKPOINT_FILE


@dataclass(frozen=True)
class Running:
    """A whole Trunkline at work, and the URL of its HTTP application."""

    house: House
    url: str
    database_url: str
    runners: list[Runner]
    worker: Worker

    def health(self) -> dict[str, Any]:
        """Where the log and each projection stand, and whether everything works."""
        with connect(self.database_url) as conn:
            projections = statuses(conn)
        halted = {s.name: f"position {s.parked.position}: {s.parked.error}" for s in projections if s.parked}
        return {
            "ok": not halted and self.worker.failing is None,
            "head": self.house.log.head(),
            "projections": {s.name: s.position for s in projections},
            "lag": {s.name: s.lag for s in projections},
            "halted": halted,
            "skipped": {s.name: [skip.position for skip in s.skipped] for s in projections if s.skipped},
            "worker": self.worker.failing or "working",
            "checkpoints": self.worker.unsigned or "working",
        }


@dataclass(frozen=True)
class Outside:
    """What is handed in from outside the house."""

    clock: Clock
    provider: PaymentProvider
    mailer: Mailer


def mailer_of(settings: Settings) -> Mailer:
    """The mail server that the settings name."""
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else None
    return SmtpMailer(settings.smtp_host, settings.smtp_port, settings.smtp_security, settings.smtp_user, password)


def house_of(settings: Settings, log: Log, outside: Outside, secret: bytes, url: str) -> House:
    """A house with the terms that the settings say."""
    return House(
        log=log,
        clock=outside.clock,
        provider=outside.provider,
        mailer=outside.mailer,
        seller=settings.seller,
        mail_from=settings.mail_from,
        public_url=settings.public_url or url,
        link_secret=secret,
        link_life=timedelta(hours=settings.link_hours),
        order_life=timedelta(days=settings.order_days),
    )


@contextmanager
def trunkline(
    settings: Settings, servers: Servers, outside: Outside, secrets: Secrets, signer: Signer | None = None
) -> Iterator[Running]:
    """Everything at work on given servers, until the context ends.

    Raises:
        DatabaseUnavailable, BrokerUnavailable, WrongSetting: names the setting.
    """
    with ExitStack() as stack:
        log = stack.enter_context(postgres_log(servers.database_url, master_key=secrets.master))
        listener = stack.enter_context(listening(settings.http_port))
        url = url_of(listener)
        house = house_of(settings, log, outside, secrets.link, url)
        runners = stack.enter_context(running(servers.database_url, log))
        worker = stack.enter_context(working(house, servers.database_url, servers.nats_url, signer))
        whole = Running(house, url, servers.database_url, runners, worker)
        stack.enter_context(serving(application(house, whole.health), listener))
        yield whole
