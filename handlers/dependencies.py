"""What handlers depend on. All of it is injected, so that a whole purchase also runs in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from domain.invoice import Seller
from handlers.numbering import NumberSequencer
from infra.clock import Clock
from infra.event_log.log import Log
from infra.mail.smtp import Mailer
from infra.payments.provider import PaymentProvider


@dataclass(frozen=True)
class Dependencies:
    """Log, clock, payment provider, mail server, and the terms of the seller."""

    log: Log
    clock: Clock
    provider: PaymentProvider
    mailer: Mailer
    seller: Seller
    mail_from: str
    public_url: str
    link_secret: bytes
    link_life: timedelta = timedelta(hours=24)
    order_life: timedelta = timedelta(days=14)
    numbering: NumberSequencer = field(default_factory=NumberSequencer)
