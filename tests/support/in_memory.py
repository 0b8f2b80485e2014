"""The whole application in memory: log, clock, mail, payment provider, and a broker of a few lines.

ACME and its package come from `tests.support.examples`; the requests here are those that come from outside.

store = InMemory()
store.placed(Method.PAYPAL)
store.pay()
store.settle()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import ClassVar, TypeVar

from eventsourcing.persistence import IntegrityError, StoredEvent

from domain.messages import Event, Message, Refusal
from domain.money import Money
from domain.order import CancelOrder, Method
from domain.quote import Selection
from handlers.commands import COMMANDS
from handlers.context import SYSTEM, Actor, Role
from handlers.contract.events import encoded
from handlers.dependencies import Dependencies
from handlers.dispatch import Outcome, handle
from handlers.messaging.reactions_consumer import follow
from handlers.numbering import NumberSequencer
from handlers.reactions import REACTIONS, Reaction
from handlers.requests import (
    CheckOut,
    CompleteCheckout,
    ConfirmOfflinePayment,
    OrderExpansion,
    RefundOrder,
)
from handlers.use_cases.invoicing import invoice_id_of
from infra import link_tokens
from infra.broker.cloudevents import CloudEvent
from infra.event_log.log import Log
from infra.event_log.memory_recorder import MemoryRecorder
from infra.mail.smtp import MailNotSent
from infra.payments.provider import Capture, Checkout, Decline, PaymentNotApproved, PaymentProviderRefused
from infra.recorded import Recorded
from tests.support.examples import (
    NOW,
    SELLER,
    activate,
    create_factory,
    eur,
    open_account,
    publish,
)
from tests.support.reading import Reader

E = TypeVar("E", bound=Event)

WILLY = Actor(Role.PARTNER, "willy", "acme")
ARTHUR = Actor(Role.PARTNER, "arthur", "slugworth")
"""A partner of another account than ACME."""
ADA = Actor(Role.ADMIN, "ada")
DORA = Actor(Role.DISTRIBUTOR, "dora")
MANNY = Actor(Role.ACCOUNT_MANAGER, "manny")
PORTAL = Actor(Role.SERVICE, "portal")
ACTORS = {actor.role: actor for actor in (WILLY, DORA, MANNY, ADA, PORTAL, SYSTEM)}

STEPS_MAX = 500
SECRET = b"everlasting gobstoppers, 32 bytes"
CHARGED = eur(544_65)
"""The total of `order`: see `tests.support.examples.ORDERED`."""

# --- requests ------------------------------------------------------------------------------------------------------

FIFTY = {"extensions": 50, "ultimate_plan": 20, "custom_domain": 1}


def order(order_id: str = "order-1", **quantities: int) -> OrderExpansion:
    """An order of ACME; the one of 544.65 euros by default."""
    selections = tuple(Selection(service=service, quantity=n) for service, n in (quantities or FIFTY).items())
    return OrderExpansion(order_id=order_id, account_id="acme", package_id="pkg-acme", selections=selections)


def check_out(method: Method, order_id: str = "order-1", pi_number: str | None = None) -> CheckOut:
    return CheckOut(order_id=order_id, account_id="acme", method=method, pi_number=pi_number)


def complete(checkout_id: str = "checkout-1", order_id: str = "order-1") -> CompleteCheckout:
    return CompleteCheckout(order_id=order_id, account_id="acme", checkout_id=checkout_id)


def confirm(amount: Money = CHARGED, order_id: str = "order-1") -> ConfirmOfflinePayment:
    return ConfirmOfflinePayment(order_id=order_id, amount=amount)


def refund(amount: Money | None = None, *services: str, refund_id: str = "refund-1") -> RefundOrder:
    return RefundOrder(order_id="order-1", refund_id=refund_id, amount=amount, services=services)


cancel_order = CancelOrder(at=NOW, order_id="order-1", account_id="acme")


def invoice_of(order_id: str = "order-1") -> str:
    return invoice_id_of(order_id)


def link_of(order_id: str = "order-1", ordinal: int = 1) -> str:
    return link_tokens.link_id(invoice_id_of(order_id), ordinal)


def token_of(order_id: str = "order-1", ordinal: int = 1) -> str:
    return link_tokens.token(SECRET, link_of(order_id, ordinal))


# --- adapters ------------------------------------------------------------------------------------------------------


class SettableClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime = NOW) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def advance(self, by: timedelta) -> None:
        self.at += by


class KeptMail:
    """A mailer that keeps its mails; while ``down`` is set it accepts none."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.down = False

    def send(self, message: EmailMessage) -> None:
        if self.down:
            raise MailNotSent("The post office is closed.", permanent=False)
        self.messages.append(message)

    def to(self, address: str) -> list[EmailMessage]:
        return [message for message in self.messages if address in str(message["To"])]


class StandIn:
    """An in-memory `PaymentProvider`; its name says that it is a fake."""

    name: ClassVar[str] = "stand-in"

    def __init__(self, clock: SettableClock) -> None:
        self.captures: dict[str, Capture] = {}
        self.refunds: dict[tuple[str, str], Money] = {}
        self._clock = clock
        self._checkouts: dict[tuple[str, Method, Money], Checkout] = {}
        self._approved: set[str] = set()
        self._declining: set[str] = set()
        self._attempts = 0

    def open_checkout(self, *, order_id: str, method: Method, amount: Money, return_url: str) -> Checkout:
        if method is Method.OFFLINE:
            raise ValueError("offline")
        checkout_id = f"checkout-{len(self._checkouts) + 1}"
        checkout = Checkout(checkout_id=checkout_id, approve_url=f"{return_url}?token={checkout_id}")
        return self._checkouts.setdefault((order_id, method, amount), checkout)

    def approve(self, checkout_id: str = "checkout-1") -> None:
        """The customer approves the payment."""
        self._approved.add(checkout_id)
        self._declining.discard(checkout_id)

    def enter_bad_card(self, checkout_id: str = "checkout-1") -> None:
        """The customer approves the payment with a card that will be declined."""
        self._approved.add(checkout_id)
        self._declining.add(checkout_id)

    def capture(self, checkout_id: str) -> Capture | Decline:
        opened = {checkout.checkout_id: what for what, checkout in self._checkouts.items()}
        if checkout_id not in opened:
            raise PaymentProviderRefused("There is no such checkout.", code="INVALID_RESOURCE_ID")
        order_id, method, amount = opened[checkout_id]
        if checkout_id not in self._approved:
            raise PaymentNotApproved("The customer has not approved it.")
        if checkout_id in self._declining:
            self._attempts += 1
            return Decline(attempt_id=f"attempt-{self._attempts}", reason="Insufficient funds", code="DECLINED")
        capture_id = checkout_id.replace("checkout", "capture")
        capture = Capture(
            capture_id=capture_id,
            checkout_id=checkout_id,
            order_id=order_id,
            method=method,
            amount=amount,
            captured_at=self._clock.now(),
        )
        return self.captures.setdefault(capture_id, capture)

    def find_capture(self, capture_id: str) -> Capture | None:
        return self.captures.get(capture_id)

    def refund(self, capture_id: str, *, refund_id: str, amount: Money) -> None:
        before = [money for (capture, _), money in self.refunds.items() if capture == capture_id]
        left = self.captures[capture_id].amount - Money.total(before, amount.currency)
        if (capture_id, refund_id) not in self.refunds and amount.amount_minor > left.amount_minor:
            raise PaymentProviderRefused("That is more than is left.", code="REFUND_AMOUNT_EXCEEDED")
        self.refunds.setdefault((capture_id, refund_id), amount)


class Crashed(Exception):
    """The process died right after a commit, before anybody learned of it."""


class EventfulRecorder(MemoryRecorder):
    """The in-memory log, with rivals that commit first and crashes after a commit.

    Attributes:
        rivals: actions to run just before a commit, one for each.
        crashes: the number of commits to crash after.
        conflicts: the number of commits that lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rivals: list[Callable[[], object]] = []
        self.crashes = 0
        self.conflicts = 0

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: object) -> Sequence[int] | None:
        if self.rivals:
            self.rivals.pop(0)()
        try:
            positions = super().insert_events(stored_events, **kwargs)
        except IntegrityError:
            self.conflicts += 1
            raise
        if self.crashes:
            self.crashes -= 1
            raise Crashed
        return positions


# --- the application -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """A pending delivery of an event to one reaction."""

    position: int
    reaction: Reaction

    def __str__(self) -> str:
        return f"{self.reaction.name}({self.position})"


@dataclass(frozen=True)
class Wished:
    """A request that a person makes in between. A refusal is answered and changes nothing."""

    message: Message

    def __str__(self) -> str:
        return type(self.message).__name__


Next = Due | Wished
Choice = Callable[[Sequence[Next]], int]


def oldest(_due: Sequence[Next]) -> int:
    """The order in which events happened."""
    return 0


@dataclass
class InMemory:
    """The application, its actors, and its log."""

    log: Log | None = None
    """A log other than the in-memory one."""
    recorder: EventfulRecorder = field(default_factory=EventfulRecorder)
    clock: SettableClock = field(default_factory=SettableClock)
    mailer: KeptMail = field(default_factory=KeptMail)
    delivered: int = 0
    """The position up to which events were delivered to reactions."""
    waiting: list[Due] = field(default_factory=list)
    """Deliveries that failed, with no event since."""

    def __post_init__(self) -> None:
        self.provider = StandIn(self.clock)
        self.dependencies = Dependencies(
            log=self.log or Log(self.recorder),
            clock=self.clock,
            provider=self.provider,
            mailer=self.mailer,
            seller=SELLER,
            mail_from=SELLER.email,
            public_url="https://orders.yt.example",
            link_secret=SECRET,
        )
        self.reader = Reader(self.dependencies.log)

    # requests and queries

    def ask(self, message: Message, actor: Actor | None = None) -> Outcome:
        """Send a request as an actor who is permitted to."""
        return handle(message, self.dependencies, actor or permitted(message), correlation_id="wish-1")

    def ask_elsewhere(self, message: Message) -> Outcome:
        """Send a request to another process over the same log."""
        other = replace(self.dependencies, numbering=NumberSequencer())
        return handle(message, other, permitted(message), correlation_id="wish-2")

    @property
    def head(self) -> int:
        return self.dependencies.log.head()

    def since(self, position: int) -> list[Event]:
        return [recorded.event for recorded in self.dependencies.log.read(position, limit=1000)]

    def all(self, kind: type[E]) -> list[E]:
        """All events of a type, in order."""
        return [recorded.event for recorded in self.reader.history() if isinstance(recorded.event, kind)]

    def one(self, kind: type[E]) -> E:
        """The only event of a type."""
        (event,) = self.all(kind)
        return event

    def names(self) -> list[str]:
        """The names of all events, in order."""
        return [type(recorded.event).__name__ for recorded in self.reader.history()]

    # history

    def opened(self) -> InMemory:
        """Prices, the account ACME and its package: 100 extensions, 20 of them Ultimate."""
        for message in (publish, open_account, activate):
            self.ask(message)
        return self

    def with_factory(self) -> InMemory:
        """A PBX with 60 Enterprise extensions."""
        self.opened().ask(create_factory)
        return self

    def ordered(self) -> InMemory:
        self.opened().ask(order())
        return self

    def placed(self, method: Method = Method.PAYPAL, pi_number: str | None = None) -> InMemory:
        self.ordered().ask(check_out(method, pi_number=pi_number))
        return self

    def offline(self) -> InMemory:
        """Placed with offline payment and a PI number."""
        return self.placed(Method.OFFLINE, "PI-2026-7")

    def approved(self) -> InMemory:
        """The customer approved the payment at the provider; it is not captured yet."""
        self.placed().provider.approve()
        return self

    def taken(self) -> InMemory:
        """The provider captured the payment, and its answer was lost."""
        self.approved().provider.capture("checkout-1")
        return self

    def paid(self) -> InMemory:
        self.approved().ask(complete())
        return self

    def just_paid(self) -> InMemory:
        """Paid; everything due before is delivered."""
        self.approved().settle()
        self.ask(complete())
        return self

    def settled(self) -> InMemory:
        """Paid, and all reactions done."""
        self.paid().settle()
        return self

    def refunded(self) -> InMemory:
        """Paid, fulfilled, invoiced and fully refunded; the reactions to the refund are still due."""
        self.settled().ask(refund())
        return self

    # the broker

    def published(self) -> list[Due]:
        """The deliveries due for events since the last call."""
        fresh = self.dependencies.log.read(self.delivered, limit=1000)
        self.delivered = fresh[-1].position if fresh else self.delivered
        return [
            Due(recorded.position, reaction)
            for recorded in fresh
            for reaction in REACTIONS.get(type(recorded.event), ())
        ]

    def everything_due(self) -> list[Due]:
        """Every delivery of the whole log."""
        self.delivered = 0
        return self.published()

    def deliver(self, due: Due) -> None:
        """Make one delivery, through the message as it is on the wire."""
        (recorded,) = self.dependencies.log.read(due.position - 1, limit=1)
        follow(on_the_wire(recorded), due.reaction, self.dependencies)

    def settle(
        self, choose: Choice = oldest, *, times: int = 1, wishes: Sequence[Message] = (), waiting: int = 0
    ) -> list[Next]:
        """Deliver all events, and those that they cause, until nothing is due.

        A failed delivery is due again after another event, and stays in ``waiting`` if there is none.

        Args:
            choose: picks the next of the due deliveries.
            times: the number of times each event is delivered.
            wishes: requests that people make meanwhile.
            waiting: the number of failing deliveries expected to be left at the end.
        """
        due: list[Next] = [Wished(message) for message in wishes]
        done: list[Next] = []
        due += self.waiting
        self.waiting = []
        while due := [*due, *self.published() * times]:
            chosen, head = due.pop(choose(due)), self.head
            done.append(chosen)
            assert len(done) < STEPS_MAX, f"it does not settle: {', '.join(map(str, done))}"
            try:
                self._do(chosen)
            except Crashed:
                due.append(chosen)
            except (Refusal, MailNotSent):
                if isinstance(chosen, Due):
                    self.waiting.append(chosen)
            if self.head > head:
                due += self.waiting
                self.waiting = []
        assert len(self.waiting) == waiting, f"left waiting: {', '.join(map(str, self.waiting))}"
        return done

    def _do(self, chosen: Next) -> None:
        if isinstance(chosen, Due):
            self.deliver(chosen)
        else:
            self.ask(chosen.message)


def in_every_order(run: Callable[[Choice], None]) -> int:
    """Run ``run`` once for every sequence of choices; returns their number."""
    script: list[int] = []
    runs = 0
    while True:
        options: list[int] = []

        def choose(due: Sequence[Next], options: list[int] = options) -> int:
            different = list(dict.fromkeys(due))
            if len(options) == len(script):
                script.append(0)
            options.append(len(different))
            return due.index(different[script[len(options) - 1]])

        run(choose)
        runs += 1
        while script and script[-1] + 1 == options[len(script) - 1]:
            script.pop()
        if not script:
            return runs
        script[-1] += 1


def on_the_wire(recorded: Recorded) -> CloudEvent:
    """The message of an event as it comes out of the broker."""
    return CloudEvent.model_validate_json(encoded(recorded))


def text_of(mail: EmailMessage) -> str:
    """A mail's plain text."""
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def permitted(message: Message) -> Actor:
    """An actor who is permitted to send this: the customer, if possible."""
    roles = COMMANDS[type(message)].roles
    return next(ACTORS[role] for role in (Role.PARTNER, Role.ADMIN, Role.DISTRIBUTOR, Role.SYSTEM) if role in roles)
