"""The composition of a Trunkline, or of some of its parts: log, HTTP application, read models, worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from handlers.contract.page import contract_pages
from handlers.dependencies import Dependencies
from handlers.http.application import application, bare_application, health_pages
from handlers.http.metrics import metrics_pages
from handlers.runtime.adapters import Adapters, dependencies_of
from handlers.runtime.checkpoint_signing import Signer
from handlers.runtime.secrets import Secrets
from handlers.runtime.servers import Servers
from handlers.runtime.worker import Duties, Worker, working
from infra.broker.relay import NAME as RELAY
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connect
from infra.postgres.positions import position_of
from infra.servers.uvicorn_thread import listening, serving, url_of
from infra.settings import Settings
from infra.tracing import exported
from projections.maintenance.runner import Runner, running, statuses


@dataclass(frozen=True)
class Parts:
    """The parts of a Trunkline that a process runs: the relay, the worker, the HTTP application."""

    relays: bool = True
    works: bool = True
    serves: bool = True


WHOLE = Parts()


@dataclass(frozen=True)
class Running:
    """A running Trunkline, or some of its parts, and the URL of its HTTP application."""

    dependencies: Dependencies
    url: str
    database_url: str
    runners: list[Runner]
    worker: Worker | None

    def health(self) -> dict[str, Any]:
        """Return the positions of log, projections and relay, and whether everything in this process works."""
        with connect(self.database_url) as conn:
            projections = statuses(conn)
            relayed = max(position_of(conn, RELAY), 0)
        worker = self.worker
        halted = {s.name: f"position {s.parked.position}: {s.parked.error}" for s in projections if s.parked}
        failing = worker.failing if worker else None
        blocked = worker.relay.blocked if worker else None
        head = self.dependencies.log.head()
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


@contextmanager
def trunkline(
    settings: Settings,
    servers: Servers,
    adapters: Adapters,
    secrets: Secrets,
    signer: Signer | None = None,
    parts: Parts = WHOLE,
) -> Iterator[Running]:
    """Run everything, or some parts, on given servers until the context ends.

    A process without the HTTP application serves only its health and metrics.

    Raises:
        DatabaseUnavailable, BrokerUnavailable, WrongSetting: names the setting.
    """
    with ExitStack() as stack:
        stack.enter_context(exported())
        log = stack.enter_context(postgres_log(servers.database_url, master_key=secrets.master))
        listener = stack.enter_context(listening(settings.http_port))
        url = url_of(listener)
        dependencies = dependencies_of(settings, log, adapters, secrets.link, url)
        runners = stack.enter_context(running(servers.database_url, log)) if parts.works else []
        worker = None
        if parts.relays or parts.works:
            duties = Duties(parts.relays, parts.works, settings.senders, settings.limits, signer)
            worker = stack.enter_context(working(dependencies, servers.database_url, servers.nats_url, duties))
        at_work = Running(dependencies, url, servers.database_url, runners, worker)
        app = application(dependencies) if parts.serves else bare_application()
        if parts.serves:
            app.include_router(contract_pages())
        app.include_router(health_pages(at_work.health))
        app.include_router(metrics_pages(at_work.health, servers.database_url))
        stack.enter_context(serving(app, listener))
        yield at_work
