"""The adapters to the outside world that the settings name: clock, payment provider, mail server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from handlers.dependencies import Dependencies
from infra.clock import Clock
from infra.event_log.log import Log
from infra.mail.smtp import Mailer, SmtpMailer
from infra.payments.paypal import PayPal
from infra.payments.provider import PaymentProvider
from infra.settings import Settings


@dataclass(frozen=True)
class Adapters:
    """The outside world, as handlers reach it."""

    clock: Clock
    provider: PaymentProvider
    mailer: Mailer


def provider_of(settings: Settings) -> PayPal:
    """Return the payment provider that the settings name."""
    secret = settings.paypal_secret.get_secret_value()
    return PayPal(base_url=settings.paypal_url, client_id=settings.paypal_client_id, client_secret=secret)


def mailer_of(settings: Settings) -> SmtpMailer:
    """Return the mail server that the settings name."""
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else None
    return SmtpMailer(settings.smtp_host, settings.smtp_port, settings.smtp_security, settings.smtp_user, password)


def dependencies_of(settings: Settings, log: Log, adapters: Adapters, secret: bytes, url: str) -> Dependencies:
    """Return what handlers depend on, with the terms that the settings name."""
    return Dependencies(
        log=log,
        clock=adapters.clock,
        provider=adapters.provider,
        mailer=adapters.mailer,
        seller=settings.seller,
        mail_from=settings.mail_from,
        public_url=settings.public_url or url,
        link_secret=secret,
        link_life=timedelta(hours=settings.link_hours),
        order_life=timedelta(days=settings.order_days),
    )
