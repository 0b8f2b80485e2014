"""The environment of the demo: real servers, a payment simulator, a mail catcher, and a clock that can be moved."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from handlers.demo.prices import BEGIN
from handlers.runtime.adapters import Adapters
from handlers.runtime.composition import Running, trunkline
from handlers.runtime.secrets import secrets_of, signer_of
from handlers.runtime.servers import open_servers
from infra.clock import ShiftedClock
from infra.mail.smtp import SmtpMailer
from infra.payments.paypal import PayPal
from infra.servers.embedded_postgres import temporary_directory
from infra.settings import Settings
from infra.simulators.mail_catcher import Catcher, mail_catcher
from infra.simulators.payment_simulator import SimulatorEndpoint, running_simulator

PROVIDER_TIMEOUT_S = 2.0
FIXED_SETTINGS = {"http_port": 0, "public_url": None, "link_hours": 24, "order_days": 14}
"""Settings that the story relies on, whatever the environment variables say."""


@dataclass(frozen=True)
class DemoEnvironment:
    """Everything that the story runs on. ``suffix`` distinguishes the accounts of one run from those of others."""

    running: Running
    clock: ShiftedClock
    simulator: SimulatorEndpoint
    catcher: Catcher
    suffix: str


@contextmanager
def demo_environment(settings: Settings, keep: Path | None) -> Iterator[DemoEnvironment]:
    """Start it in a temporary directory, or in ``keep``, where the data of the servers then stays."""
    with ExitStack() as stack:
        directory = keep or stack.enter_context(temporary_directory())
        directory.mkdir(parents=True, exist_ok=True)
        servers = stack.enter_context(open_servers(settings, directory))
        clock = ShiftedClock(BEGIN)
        simulator = stack.enter_context(running_simulator(clock=clock))
        provider = stack.enter_context(
            PayPal(
                base_url=simulator.url,
                client_id=simulator.client_id,
                client_secret=simulator.client_secret,
                timeout_s=PROVIDER_TIMEOUT_S,
            )
        )
        catcher = stack.enter_context(mail_catcher())
        mailer = stack.enter_context(SmtpMailer(catcher.host, catcher.port))
        adapters = Adapters(clock, provider, mailer)
        fixed = settings.model_copy(update=FIXED_SETTINGS)
        given, signer = secrets_of(settings, directory), signer_of(settings, directory)
        running = stack.enter_context(trunkline(fixed, servers, adapters, given, signer))
        simulator.send_webhooks_to(f"{running.url}/webhooks/paypal")
        fresh = running.dependencies.log.head() == 0
        yield DemoEnvironment(running, clock, simulator, catcher, "" if fresh else f"-{secrets.token_hex(3)}")
