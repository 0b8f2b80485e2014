"""The whole composition on real servers (PostgreSQL, NATS, payment simulator, mail server) and ways to wait for it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from itertools import count
from typing import TypeVar

import nats

from domain.invoice import InvoiceIssued
from domain.messages import Event, Message
from domain.order import Method
from domain.quote import Selection
from handlers.context import Actor
from handlers.dependencies import Dependencies
from handlers.dispatch import Outcome, handle
from handlers.requests import CheckOut, CompleteCheckout, OrderExpansion
from handlers.runtime.adapters import Adapters
from handlers.runtime.composition import Running, trunkline
from handlers.runtime.secrets import Secrets
from handlers.runtime.servers import Servers
from handlers.runtime.worker import Worker
from infra.mail.smtp import SmtpMailer
from infra.payments.paypal import PayPal
from infra.payments.provider import Capture, Checkout
from infra.recorded import Recorded
from infra.settings import settings
from infra.simulators.mail_catcher import Catcher, mail_catcher
from infra.simulators.payment_simulator import GOOD_CARD, SimulatorEndpoint, running_simulator
from tests.support.databases import MASTER_KEY
from tests.support.examples import activate, open_account, publish
from tests.support.in_memory import ADA, SECRET, WILLY, SettableClock, permitted, text_of
from tests.support.reading import Reader

E = TypeVar("E", bound=Event)
T = TypeVar("T")

SOON_S = 120.0
"""A timeout that is long enough on a loaded machine."""
POLL_S = 0.02


def eventually(condition: Callable[[], T], what: str = "the condition", within_s: float = SOON_S) -> T:
    """Return the first truthy result of ``condition``.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out after {within_s} s waiting for {what}"
        time.sleep(POLL_S)
    return found


def without_streams(nats_url: str) -> str:
    """NATS without streams."""

    async def delete() -> None:
        client = await nats.connect(nats_url)
        jetstream = client.jetstream()
        for stream in await jetstream.streams_info():
            await jetstream.delete_stream(stream.config.name or "")
        await client.close()

    asyncio.run(delete())
    return nats_url


@dataclass(frozen=True)
class Surroundings:
    """Test adapters: the clock, the payment provider and the mail server."""

    clock: SettableClock
    simulator: SimulatorEndpoint
    provider: PayPal
    catcher: Catcher
    mailer: SmtpMailer

    @property
    def outside(self) -> Adapters:
        return Adapters(self.clock, self.provider, self.mailer)


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    clock = SettableClock()
    with (
        running_simulator(clock=clock) as simulator,
        PayPal(
            base_url=simulator.url,
            client_id=simulator.client_id,
            client_secret=simulator.client_secret,
            timeout_s=30,
            retry_wait_s=0.01,
        ) as provider,
        mail_catcher() as catcher,
        SmtpMailer(catcher.host, catcher.port) as mailer,
    ):
        yield Surroundings(clock, simulator, provider, catcher, mailer)


@dataclass(frozen=True)
class AtWork:
    """A running Trunkline and its surroundings. ACME and its package exist."""

    running: Running
    around: Surroundings
    reader: Reader
    _orders: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def dependencies(self) -> Dependencies:
        return self.running.dependencies

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def worker(self) -> Worker:
        assert self.running.worker
        return self.running.worker

    def ask(self, message: Message, actor: Actor | None = None) -> Outcome:
        """Send a request as an actor who is permitted to."""
        return handle(message, self.dependencies, actor or permitted(message), correlation_id="wish-1")

    def history(self) -> list[Recorded]:
        return self.reader.history()

    def all(self, kind: type[E], order_id: str | None = None) -> list[E]:
        """All events of a type, of one order if given."""
        events = [recorded.event for recorded in self.history() if isinstance(recorded.event, kind)]
        return [event for event in events if order_id in (None, getattr(event, "order_id", None))]

    def until(self, kind: type[E], order_id: str) -> E:
        """Wait for the first event of a type that concerns an order."""

        def found() -> E | None:
            invoices = {event.invoice_id for event in self.all(InvoiceIssued, order_id)}
            for event in self.all(kind):
                if getattr(event, "order_id", None) == order_id or getattr(event, "invoice_id", None) in invoices:
                    return event
            return None

        event = eventually(found, f"{kind.__name__} of {order_id}")
        assert event is not None
        return event

    def order(self, **quantities: int) -> str:
        """A new order of ACME; one extension by default."""
        order_id = f"order-{next(self._orders)}"
        selections = tuple(Selection(service=service, quantity=n) for service, n in (quantities or ONE).items())
        wish = OrderExpansion(order_id=order_id, account_id="acme", package_id="pkg-acme", selections=selections)
        self.ask(wish, WILLY)
        return order_id

    def check_out(self, order_id: str, method: Method = Method.PAYPAL) -> Checkout:
        """Place an order to be paid at the provider."""
        wish = CheckOut(order_id=order_id, account_id="acme", method=method)
        answer = self.ask(wish, WILLY).answer
        assert isinstance(answer, Checkout)
        return answer

    def approve(self, checkout: Checkout, method: Method = Method.PAYPAL) -> None:
        """The customer approves the payment at the provider."""
        if method is Method.CARD:
            self.around.simulator.enter_card(checkout, GOOD_CARD)
        else:
            self.around.simulator.approve(checkout)

    def complete(self, order_id: str, checkout: Checkout) -> Capture:
        """The customer returns from the provider."""
        wish = CompleteCheckout(order_id=order_id, account_id="acme", checkout_id=checkout.checkout_id)
        answer = self.ask(wish, WILLY).answer
        assert isinstance(answer, Capture)
        return answer

    def buy(self, method: Method = Method.PAYPAL, **quantities: int) -> str:
        """Place, approve and complete an order at the provider."""
        order_id = self.order(**quantities)
        checkout = self.check_out(order_id, method)
        self.approve(checkout, method)
        self.complete(order_id, checkout)
        return order_id

    def taken(self) -> tuple[str, str]:
        """An order whose payment the provider captured but did not report. Returns the ids of order and capture."""
        order_id = self.order()
        checkout = self.check_out(order_id)
        self.approve(checkout)
        self.around.simulator.send_webhooks_to(None)
        capture = self.around.provider.capture(checkout.checkout_id)
        assert isinstance(capture, Capture)
        return order_id, capture.capture_id

    def mails(self, subject: str) -> list[EmailMessage]:
        return [mail for mail in list(self.around.catcher.messages) if subject in str(mail["Subject"])]

    def link(self, number: str) -> str:
        """The last link mailed for an invoice."""
        mail = eventually(lambda: self.mails(f"Invoice {number}"), f"the mail of {number}")[-1]
        return link_in(mail)


ONE = {"extensions": 1}


def link_in(mail: EmailMessage) -> str:
    """The URL of the invoice in a mail."""
    found = re.search(r"https?://\S+/invoices/\S+", text_of(mail))
    assert found, text_of(mail)
    return found.group()


@contextmanager
def at_work(database_url: str, nats_url: str) -> Iterator[AtWork]:
    """Run the whole composition, with ACME and its package."""
    with ExitStack() as stack:
        around = stack.enter_context(surroundings())
        given = settings(http_port=0, seller_code="YT", mail_from="billing@yt.example")
        servers = Servers(database_url, nats_url)
        running = stack.enter_context(trunkline(given, servers, around.outside, Secrets(SECRET, MASTER_KEY)))
        around.simulator.send_webhooks_to(f"{running.url}/webhooks/paypal")
        work = AtWork(running, around, Reader(running.dependencies.log))
        for message in (publish, open_account, activate):
            work.ask(message, ADA)
        yield work
