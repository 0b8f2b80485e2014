"""How the parts are put together: servers, log, HTTP application, projections, worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from handlers.contract.page import contract_pages
from handlers.desk import House
from handlers.http import application
from handlers.keyring import Secrets
from handlers.signing import Signer
from handlers.telemetry import metrics_pages
from handlers.worker import Duties, Worker, working
from infra.clock import Clock
from infra.embedded_nats import embedded_nats
from infra.embedded_postgres import embedded_postgres
from infra.log import Log
from infra.payments import PaymentProvider
from infra.paypal import PayPal
from infra.postgres import DatabaseUnavailable, admit, connect, migrate, position_of, program_login
from infra.postgres_recorder import postgres_log
from infra.relay import NAME as RELAY
from infra.settings import Settings, WrongSetting
from infra.smtp import Mailer, SmtpMailer
from infra.tracing import exported
from infra.uvicorn_thread import listening, serving, url_of
from projections.runner import Runner, running, statuses

RUNNING = "running.json"


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
def broker_url(settings: Settings, directory: Path | None) -> Iterator[str]:
    """The address of NATS: the settings', or that of the server whose data are in ``directory``.

    Raises:
        WrongSetting: neither is given.
        ServerDidNotStart: it cannot be started.
    """
    if settings.nats_url:
        yield settings.nats_url
    elif directory is None:
        raise WrongSetting("Say where the messages are: set TRUNKLINE_NATS_URL, or give --data DIRECTORY.")
    elif not (directory / "nats").is_dir():
        raise WrongSetting(f"There are no data of Trunkline in {directory}; trunkline up --data makes some.")
    elif places := _running_in(directory):
        yield places.nats_url
    else:
        with embedded_nats(directory / "nats") as url:
            yield url


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
def owner_of(settings: Settings, directory: Path | None) -> Iterator[str]:
    """The address of the same database for its owner, who may change what no other login may.

    Raises:
        WrongSetting: it is not given; or a Trunkline runs on the data, which would not know of the change.
        DatabaseUnavailable, ServerDidNotStart: as `database` does.
    """
    if settings.database_url:
        if not settings.owner_url:
            raise WrongSetting("TRUNKLINE_OWNER_URL is missing: no other login may do this.")
        prepared(settings)
        yield settings.owner_url
        return
    data = _with_data(directory)
    if _running_in(data):
        raise WrongSetting(f"A Trunkline runs on the data in {data}; stop it first.")
    with embedded_postgres(data / "postgres") as owner_url:
        migrate(owner_url)
        yield owner_url


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


def duties_of(settings: Settings, *, relays: bool = True, works: bool = True, signer: Signer | None = None) -> Duties:
    """What a worker is to do under these settings."""
    return Duties(relays, works, settings.senders, settings.limits, signer)


@dataclass(frozen=True)
class Running:
    """A whole Trunkline at work, and the URL of its HTTP application."""

    house: House
    url: str
    database_url: str
    runners: list[Runner]
    worker: Worker

    def health(self) -> dict[str, Any]:
        """See `running_health`."""
        return running_health(self.database_url, self.house.log, self.worker)


def running_health(database_url: str, log: Log, worker: Worker | None) -> dict[str, Any]:
    """Where the log, each projection and the relay stand, and whether everything in this process works."""
    with connect(database_url) as conn:
        projections = statuses(conn)
        relayed = max(position_of(conn, RELAY), 0)
    halted = {s.name: f"position {s.parked.position}: {s.parked.error}" for s in projections if s.parked}
    failing = worker.failing if worker else None
    blocked = worker.relay.blocked if worker else None
    head = log.head()
    return {
        "ok": not halted and failing is None and blocked is None,
        "head": head,
        "projections": {s.name: s.position for s in projections},
        "lag": {s.name: s.lag for s in projections},
        "halted": halted,
        "skipped": {s.name: [skip.position for skip in s.skipped] for s in projections if s.skipped},
        "worker": failing or ("working" if worker else "elsewhere"),
        "relay": {
            "position": relayed,
            "lag": max(head - relayed, 0),
            "active": bool(worker and worker.relay.active),
            "blocked": blocked,
        },
        "dead_letters": worker.dead_letters if worker else None,
        "checkpoints": (worker.unsigned or "working") if worker else "elsewhere",
    }


@dataclass(frozen=True)
class Outside:
    """What is handed in from outside the house."""

    clock: Clock
    provider: PaymentProvider
    mailer: Mailer


def provider_of(settings: Settings) -> PayPal:
    """The payment provider that the settings name."""
    secret = settings.paypal_secret.get_secret_value()
    return PayPal(base_url=settings.paypal_url, client_id=settings.paypal_client_id, client_secret=secret)


def mailer_of(settings: Settings) -> SmtpMailer:
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
        stack.enter_context(exported())
        log = stack.enter_context(postgres_log(servers.database_url, master_key=secrets.master))
        listener = stack.enter_context(listening(settings.http_port))
        url = url_of(listener)
        house = house_of(settings, log, outside, secrets.link, url)
        runners = stack.enter_context(running(servers.database_url, log))
        duties = duties_of(settings, signer=signer)
        worker = stack.enter_context(working(house, servers.database_url, servers.nats_url, duties))
        whole = Running(house, url, servers.database_url, runners, worker)
        app = application(house, whole.health)
        app.include_router(contract_pages())
        app.include_router(metrics_pages(whole.health, servers.database_url))
        stack.enter_context(serving(app, listener))
        yield whole
