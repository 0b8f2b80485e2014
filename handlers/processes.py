"""The parts as processes of their own, for an installation that outgrows ``trunkline up``: see docs/scaling.md."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from handlers.composition import duties_of, running_health
from handlers.console import say
from handlers.contract.page import contract_pages
from handlers.house import Outside, house_of, mailer_of, provider_of
from handlers.http import application
from handlers.keyring import secrets_of, signer_of
from handlers.start import settled
from handlers.telemetry import metrics_pages
from handlers.worker import working
from infra.clock import SystemClock
from infra.postgres_recorder import postgres_log
from infra.settings import Settings, WrongSetting, settings
from infra.tracing import exported
from infra.uvicorn_thread import listening, serving, url_of
from projections.runner import running

NEEDED = ("database_url", "nats_url")


def running_alone(what: str, *, relays: bool, works: bool, serves: bool = False) -> None:
    """Run some of the parts until the process is told to stop.

    Each has a small HTTP application with its health and its figures, at ``TRUNKLINE_HTTP_PORT``; who serves has the
    whole one.

    Raises:
        WrongSetting: the servers are not named; several processes have to share them.
    """
    given = settings()
    for name in NEEDED:
        if getattr(given, name) is None:
            raise WrongSetting(f"TRUNKLINE_{name.upper()} is missing: processes of their own have to share it.")
    with parts(given, relays=relays, works=works, serves=serves) as url:
        say(f"Trunkline {what} at {url}; stop it by Ctrl-C.")
        until_stopped()


def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    gc.collect()
    settled()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()


@contextmanager
def parts(given: Settings, *, relays: bool, works: bool, serves: bool) -> Iterator[str]:
    """Some of the parts, while the context lasts; gives the URL of their HTTP application."""
    assert given.database_url is not None
    assert given.nats_url is not None
    with ExitStack() as stack:
        stack.enter_context(exported())
        secrets = secrets_of(given, None)
        log = stack.enter_context(postgres_log(given.database_url, master_key=secrets.master))
        listener = stack.enter_context(listening(given.http_port))
        url = url_of(listener)
        provider, mailer = stack.enter_context(provider_of(given)), stack.enter_context(mailer_of(given))
        house = house_of(given, log, Outside(SystemClock(), provider, mailer), secrets.link, url)
        if works:
            stack.enter_context(running(given.database_url, log))
        worker = None
        if relays or works:
            duties = duties_of(given, relays=relays, works=works, signer=signer_of(given, None))
            worker = stack.enter_context(working(house, given.database_url, given.nats_url, duties))

        def health() -> dict[str, Any]:
            assert given.database_url is not None
            return running_health(given.database_url, log, worker)

        app = application(house, health) if serves else only_health(health)
        if serves:
            app.include_router(contract_pages())
        app.include_router(metrics_pages(health, given.database_url))
        stack.enter_context(serving(app, listener))
        yield url


def only_health(health: Callable[[], dict[str, Any]]) -> FastAPI:
    """An application that says how a process is, and nothing else."""
    app = FastAPI(title="Trunkline", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def report_health() -> JSONResponse:
        """Whether every part of this process does its work."""
        report = health()
        return JSONResponse(report, 200 if report["ok"] else 503)

    return app
