"""Parts of Trunkline as separate processes, for installations that outgrow ``trunkline up``: see docs/scaling.md."""

from __future__ import annotations

import gc
import signal
import threading

from handlers.cli.console import say
from handlers.cli.interpreter import freeze_loaded_objects
from handlers.runtime.adapters import Adapters, mailer_of, provider_of
from handlers.runtime.composition import Parts, trunkline
from handlers.runtime.secrets import secrets_of, signer_of
from handlers.runtime.servers import Servers
from infra.clock import SystemClock
from infra.settings import WrongSetting, settings

NEEDED = ("database_url", "nats_url")


def running_alone(what: str, *, relays: bool, works: bool, serves: bool = False) -> None:
    """Run some parts until the process is told to stop.

    Each process serves its health and metrics at ``TRUNKLINE_HTTP_PORT``, and the whole HTTP application if ``serves``.

    Raises:
        WrongSetting: the settings do not name the servers, which separate processes have to share.
    """
    given = settings()
    for name in NEEDED:
        if getattr(given, name) is None:
            raise WrongSetting(f"TRUNKLINE_{name.upper()} is missing: separate processes have to share it.")
    assert given.database_url is not None
    assert given.nats_url is not None
    servers, parts = Servers(given.database_url, given.nats_url), Parts(relays, works, serves)
    signer = signer_of(given, None) if relays or works else None
    with provider_of(given) as provider, mailer_of(given) as mailer:
        adapters = Adapters(SystemClock(), provider, mailer)
        with trunkline(given, servers, adapters, secrets_of(given, None), signer, parts) as running:
            say(f"Trunkline {what} at {running.url}; stop it with Ctrl-C.")
            until_stopped()


def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    gc.collect()
    freeze_loaded_objects()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()
