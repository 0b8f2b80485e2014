"""Realistic histories: partner accounts that buy, pay, allocate, view invoices, and sometimes change their minds.

The domain decides every event, and the log writes it. The same number of accounts and the same seed make the same
events at the same positions.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from itertools import chain, islice
from random import Random
from typing import Any, Final, Protocol

from pydantic_core import to_json
from rich.console import Console
from rich.progress import Progress

from domain.account import ACCOUNT, BillingContact, OpenAccount
from domain.allocation import (
    ALLOCATION,
    AllocateCapacity,
    CreatePbx,
    GrantCapacity,
    ReleaseCapacity,
    RemovePbx,
    UpgradePbx,
    WithdrawCapacity,
)
from domain.invoice import INVOICE, Document, IssueCreditNote, IssueInvoice, RecordInvoiceEmailed, Seller, credit_of
from domain.invoice_link import INVOICE_LINK, ConsumeLink, IssueLink
from domain.invoice_series import INVOICE_SERIES, AssignInvoiceNumber
from domain.messages import Decider, Event, Refusal
from domain.money import Money
from domain.order import (
    ORDER,
    CancelOrder,
    CapturePayment,
    ChooseBillingContact,
    DeclinePayment,
    ExpireOrder,
    FulfilOrder,
    Method,
    PlaceOrder,
    RefundPayment,
    RequestExpansion,
    SetPaymentAside,
)
from domain.payment_reference import PAYMENT_REFERENCE, ClaimPaymentReference, capture_reference, pi_reference
from domain.price_list import PRICE_LIST, Offer, PriceList, PriceListPublished, PublishPriceList, TaxRule, price_list_id
from domain.quote import Quote, Selection, Term, quote
from domain.services import Plan, Pricing
from domain.subscription import SUBSCRIPTION, ActivatePackage, ExpandPackage, ReverseGrant
from infra.event_log.append import Append
from infra.event_log.group_commit import GROUP_MAX, GroupCommit
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import WRITER, connect
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.recorded import Cause, Recorded
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from infra.settings import decoded_master_key, settings

MASTER_KEY: Final = bytes(32)
"""A fixed key is fine: a made-up history has nobody's data in it."""

BEGIN: Final = datetime(2026, 1, 1, 8, tzinfo=UTC)
TERM: Final = Term(starts_on=date(2026, 1, 1), ends_on=date(2027, 1, 1))
ACCOUNTS_PER_SELLER: Final = 20
ORDERS: Final = (5, 10)
FLAT_SHARE: Final = 0.15
# Weights: what is done with a pool, and how an order ends.
CREATES, ALLOCATES, RELEASES, UPGRADES = 0.35, 0.8, 0.88, 0.95
CANCELLED, EXPIRED, DECLINED, UNPAID, REFUNDED, SHORT = 0.05, 0.12, 0.18, 0.24, 0.93, 0.97
FIRST_CAPACITY: Final = {"extensions": 100, "ultimate_plan": 20, "recording_minutes": 5_000, "high_availability": 2}
TOKEN_SHA: Final = "b" * 64


def _offer(service: str, price_minor: int, pricing: Pricing = Pricing.QUANTITY, *, one_time: bool = False) -> Offer:
    return Offer(
        service=service,
        title=service.replace("_", " ").capitalize(),
        unit="unit",
        pricing=pricing,
        to_pbxs=pricing is Pricing.QUANTITY,
        one_time=one_time,
        unit_price_minor=price_minor,
        tax_class="standard",
    )


OFFERS: Final = (
    _offer("extensions", 36_50),
    _offer("ultimate_plan", 18_25),
    _offer("recording_minutes", 5),
    _offer("high_availability", 365_00),
    _offer("transcription_minutes", 4, one_time=True),
    _offer("ycm_white_label", 730_00, Pricing.FLAT),
    _offer("pce_white_label", 547_50, Pricing.FLAT),
    _offer("custom_domain", 109_50, Pricing.FLAT),
)
QUANTITIES: Final = {
    "extensions": 25,
    "ultimate_plan": 5,
    "recording_minutes": 1_000,
    "high_availability": 1,
    "transcription_minutes": 600,
    "ycm_white_label": 1,
    "pce_white_label": 1,
    "custom_domain": 1,
}


@dataclass
class Story:
    """The activity of one account, as units of work decided on the aggregates that it knows."""

    number: int
    random: Random
    shared: dict[str, Any]
    versions: dict[str, int]
    seller: str
    states: dict[str, Any] = field(default_factory=dict)
    decided: list[tuple[str, int, Event]] = field(default_factory=list)
    at: datetime = BEGIN
    orders: int = 0

    @property
    def account(self) -> str:
        """The id of the account."""
        return f"account-{self.number:06d}"

    @property
    def package(self) -> str:
        """The id of its hosting package."""
        return f"pkg-{self.number:06d}"

    def state(self, decider: Decider[Any, Any, Any], aggregate_id: str) -> Any:  # noqa: ANN401 - differs by aggregate
        """The current state of an aggregate."""
        stream = decider.stream(aggregate_id)
        return self.states.get(stream, self.shared.get(stream, decider.initial))

    def do(self, decider: Decider[Any, Any, Any], aggregate_id: str, kind: Callable[..., Any], **fields: object) -> Any:  # noqa: ANN401
        """Decide a command; returns its events."""
        stream = decider.stream(aggregate_id)
        states = self.shared if decider in (INVOICE_SERIES, PRICE_LIST) else self.states
        state = states.get(stream, decider.initial)
        events = decider.decide(kind(at=self.at, **fields), state)
        for event in events:
            state = decider.evolve(state, event)
            self.versions[stream] = self.versions.get(stream, 0) + 1
            self.decided.append((stream, self.versions[stream], event))
        states[stream] = state
        return events

    def later(self, *, most_hours: float) -> None:
        """Let some time pass."""
        self.at += timedelta(seconds=self.random.randint(30, int(most_hours * 3600)))

    def unit(self, actor: str) -> list[Recorded]:
        """The events decided since the last commit, as one commit."""
        correlation = f"wish-{self.number}-{len(self.versions)}-{self.at:%y%m%d%H%M%S}"
        cause = Cause(actor, correlation)
        events = [Recorded(stream, version, e, self.account, cause, self.at) for stream, version, e in self.decided]
        self.decided = []
        return events

    def units(self) -> Iterator[list[Recorded]]:
        """The whole activity, commit by commit."""
        contact = BillingContact(
            name=f"Contact {self.number}",
            email=f"billing@partner{self.number}.example",
            company=f"Partner {self.number} GmbH",
            address=(f"Street {self.number}", "10115 Berlin"),
            country="DE",
        )
        self.at += timedelta(seconds=self.random.randint(0, 60 * 24 * 3600))
        who = {"package_id": self.package, "account_id": self.account}
        self.do(
            ACCOUNT,
            self.account,
            OpenAccount,
            account_id=self.account,
            name=f"Partner {self.number}",
            seller=self.seller,
            currency="EUR",
            country="DE",
            manager_email="dora@yt.example",
            receiver_id="first",
            contact=contact,
        )
        self.do(SUBSCRIPTION, self.package, ActivatePackage, **who, term=TERM, quantities=FIRST_CAPACITY)
        self.do(ALLOCATION, self.package, GrantCapacity, **who, grant_id=self.package, quantities=FIRST_CAPACITY)
        yield self.unit("admin:ada")
        for _ in range(self.random.randint(*ORDERS)):
            self.later(most_hours=24 * 30)
            yield from self._allocations()
            yield from self._purchase(contact)
            if self.at.date() >= TERM.ends_on - timedelta(days=30):
                return

    # --- PBXs

    def _allocations(self) -> Iterator[list[Recorded]]:
        for _ in range(self.random.randint(1, 5)):
            self.later(most_hours=8)
            try:
                self._allocation()
            except Refusal:
                self.decided = []
                continue
            if self.decided:
                yield self.unit(f"partner:{self.account}")

    def _allocation(self) -> None:
        pool, name = self.state(ALLOCATION, self.package), f"{self.number}-{len(self.versions)}-{self.at:%j%H%M%S}"
        pbxs = list(pool.pbxs)
        who = {"account_id": self.account, "package_id": self.package}
        what = self.random.random()
        if not pbxs or what < CREATES:
            plan = self.random.choice(list(Plan))
            size = self.random.randint(2, 15)
            create = {"pbx_id": f"pbx-{name}", "name": f"PBX {name}", "plan": plan, "extensions": size}
            self.do(ALLOCATION, self.package, CreatePbx, **who, **create)
            return
        pbx = {**who, "pbx_id": self.random.choice(pbxs)}
        if what < ALLOCATES:
            service = self.random.choice(["extensions", "recording_minutes", "high_availability"])
            quantity = {"extensions": 3, "recording_minutes": 700, "high_availability": 1}[service]
            allocate = {"allocation_id": f"allocation-{name}", "service": service, "quantity": quantity}
            self.do(ALLOCATION, self.package, AllocateCapacity, **pbx, **allocate)
        elif what < RELEASES:
            release = {"release_id": f"release-{name}", "service": "extensions", "quantity": 1}
            self.do(ALLOCATION, self.package, ReleaseCapacity, **pbx, **release)
        elif what < UPGRADES:
            self.do(ALLOCATION, self.package, UpgradePbx, **pbx)
        else:
            self.do(ALLOCATION, self.package, RemovePbx, **pbx)

    # --- the purchase

    def _purchase(self, contact: BillingContact) -> Iterator[list[Recorded]]:
        self.orders += 1
        order_id = f"order-{self.number:06d}-{self.orders}"
        priced = self._quote()
        request = {"order_id": order_id, "account_id": self.account, "package_id": self.package, "quote": priced}
        self.do(ORDER, order_id, RequestExpansion, **request, expires_at=self.at + timedelta(days=14))
        self.do(ORDER, order_id, ChooseBillingContact, order_id=order_id, receiver_id="first", contact=contact)
        yield self.unit(f"partner:{self.account}")
        method = self.random.choices(list(Method), (5, 3, 2))[0]
        fate = self.random.random()
        self.later(most_hours=2)
        if fate < CANCELLED:
            cancelled = {"order_id": order_id, "account_id": self.account, "reason": "Changed our mind"}
            self.do(ORDER, order_id, CancelOrder, **cancelled)
            yield self.unit(f"partner:{self.account}")
            return
        pi_number = f"PI-{self.number}-{self.orders}" if method is Method.OFFLINE else None
        self.do(ORDER, order_id, PlaceOrder, order_id=order_id, method=method, pi_number=pi_number)
        if pi_number:
            self._claim(pi_reference(self.seller, pi_number), order_id)
        yield self.unit(f"partner:{self.account}")
        if fate < EXPIRED:
            self.at += timedelta(days=15)
            self.do(ORDER, order_id, ExpireOrder, order_id=order_id)
            yield self.unit("system:clock")
            return
        if fate < DECLINED and method is not Method.OFFLINE:
            decline = {"attempt_id": f"attempt-{order_id}", "reason": "Insufficient funds"}
            self.do(ORDER, order_id, DeclinePayment, order_id=order_id, **decline)
            yield self.unit("system:provider")
        if fate < UNPAID and method is Method.OFFLINE:
            return  # not paid yet
        yield from self._paid(order_id, method, priced, fate)
        for done in [stream for stream in self.states if order_id in stream]:
            del self.states[done]  # not needed again

    def _paid(self, order_id: str, method: Method, priced: Quote, fate: float) -> Iterator[list[Recorded]]:
        self.later(most_hours=240 if method is Method.OFFLINE else 0.2)
        capture_id = f"capture-{order_id}"
        amount = priced.total if fate < SHORT else Money(amount_minor=priced.total.amount_minor - 1, currency="EUR")
        self._claim(capture_reference(method, capture_id), order_id)
        payment = {"order_id": order_id, "method": method, "capture_id": capture_id, "amount": amount}
        self.do(ORDER, order_id, CapturePayment, **payment, captured_at=self.at)
        yield self.unit("distributor:dora" if method is Method.OFFLINE else "system:provider")
        if amount != priced.total:
            return
        self.at += timedelta(milliseconds=40)
        lines = priced.lines
        try:
            expand = {"package_id": self.package, "order_id": order_id, "lines": lines}
            self.do(SUBSCRIPTION, self.package, ExpandPackage, **expand)
        except Refusal as refusal:  # a flat service that the account has in the meantime
            self.do(ORDER, order_id, SetPaymentAside, order_id=order_id, explanation=str(refusal))
            yield self.unit("system:reactions")
            return
        self.do(ORDER, order_id, FulfilOrder, order_id=order_id)
        if pooled := {line.service: line.quantity for line in lines if line.to_pbxs}:
            grant = {"package_id": self.package, "account_id": self.account, "grant_id": order_id, "quantities": pooled}
            self.do(ALLOCATION, self.package, GrantCapacity, **grant)
        yield self.unit("system:reactions")
        yield from self._invoiced(order_id, method, capture_id, priced)
        if fate > REFUNDED:
            yield from self._refunded(order_id, priced)

    def _invoiced(self, order_id: str, method: Method, capture_id: str, priced: Quote) -> Iterator[list[Recorded]]:
        self.at += timedelta(milliseconds=80)
        order, invoice_id, link_id = self.state(ORDER, order_id), f"invoice-{order_id}", f"link-{order_id}-1"
        issue = {
            "invoice_id": invoice_id,
            "number": self._number(invoice_id),
            "account_id": self.account,
            "order_id": order_id,
            "package_id": self.package,
            "seller": self._seller(),
            "receiver_id": order.billing.receiver_id,
            "buyer": order.billing.contact,
            "quote": priced,
            "method": method,
            "capture_id": capture_id,
            "pi_number": order.placed.pi_number,
            "paid_at": order.captured.captured_at,
            "document": _document(invoice_id),
        }
        self.do(INVOICE, invoice_id, IssueInvoice, **issue)
        link = {"link_id": link_id, "invoice_id": invoice_id, "order_id": order_id, "ordinal": 1}
        expires_at = self.at + timedelta(hours=24)
        self.do(INVOICE_LINK, link_id, IssueLink, **link, token_sha256=TOKEN_SHA, expires_at=expires_at)
        yield self.unit("system:reactions")
        self.at += timedelta(milliseconds=300)
        mailed = {"invoice_id": invoice_id, "link_id": link_id, "message_id": f"<{link_id}@yt.example>"}
        billing = order.billing
        mailed |= {"receiver_id": billing.receiver_id, "recipient": billing.contact.email}
        self.do(INVOICE, invoice_id, RecordInvoiceEmailed, **mailed)
        yield self.unit("system:reactions")
        for _ in range(self.random.choice([0, 1, 1, 1, 2])):
            self.later(most_hours=20)
            if self.do(INVOICE_LINK, link_id, ConsumeLink, link_id=link_id, token_sha256=TOKEN_SHA):
                yield self.unit("system:link")

    def _refunded(self, order_id: str, priced: Quote) -> Iterator[list[Recorded]]:
        self.later(most_hours=72)
        refund_id, invoice_id = f"refund-{order_id}", f"invoice-{order_id}"
        self.do(ORDER, order_id, RefundPayment, order_id=order_id, refund_id=refund_id, amount=priced.total)
        yield self.unit("admin:ada")
        services = tuple(line.service for line in priced.lines)
        reverse = {"package_id": self.package, "order_id": order_id, "services": services}
        for event in self.do(SUBSCRIPTION, self.package, ReverseGrant, **reverse):
            if event.withdrawn:
                taken = {"withdrawal_id": refund_id, "quantities": event.withdrawn}
                self.do(ALLOCATION, self.package, WithdrawCapacity, package_id=self.package, **taken)
        if self.decided:
            yield self.unit("system:reactions")
        invoice, credit_id = self.state(INVOICE, invoice_id).issued, f"credit-{order_id}"
        net, taxes = credit_of(invoice.quote, priced.total)
        credit = {
            "credit_note_id": credit_id,
            "number": self._number(credit_id),
            "invoice_id": invoice_id,
            "invoice_number": invoice.number,
            "account_id": self.account,
            "order_id": order_id,
            "refund_id": refund_id,
            "seller": self._seller(),
            "receiver_id": invoice.receiver_id,
            "buyer": invoice.buyer,
            "net": net,
            "taxes": taxes,
            "total": priced.total,
            "refunded_at": self.at,
            "document": _document(credit_id),
        }
        self.do(INVOICE, credit_id, IssueCreditNote, **credit)
        yield self.unit("system:reactions")

    def _claim(self, reference: str, order_id: str) -> None:
        self.do(PAYMENT_REFERENCE, reference, ClaimPaymentReference, reference=reference, order_id=order_id)

    def _number(self, document_id: str) -> str:
        series, assign = f"{self.seller}-2026", {"seller": self.seller, "year": 2026, "document_id": document_id}
        number: str = self.do(INVOICE_SERIES, series, AssignInvoiceNumber, **assign)[0].number
        return number

    def _seller(self) -> Seller:
        address = ("Fuggerstrasse 1", "86150 Augsburg")
        kept = {"address": address, "country": "DE", "vat_id": "DE111111111", "email": "billing@yt.example"}
        return Seller.model_validate({"code": self.seller, "name": "Seller"} | kept)

    def _quote(self) -> Quote:
        services = self.random.sample(list(QUANTITIES)[:5], self.random.randint(1, 3))
        if self.random.random() < FLAT_SHARE:
            services.append(self.random.choice(list(QUANTITIES)[5:]))
        selections = [Selection(service=s, quantity=QUANTITIES[s]) for s in sorted(services)]
        day = min(self.at.date(), TERM.ends_on - timedelta(days=1))
        prices: PriceList = self.shared[PRICE_LIST.stream(price_list_id(self.seller, "EUR"))]
        return quote(prices, currency="EUR", country="DE", term=TERM, on=day, selections=selections)


def _document(document_id: str) -> Document:
    return Document(
        sha256=document_id.encode().hex().ljust(64, "0")[:64], media_type="application/pdf", size_bytes=9000
    )


def history(accounts: int, seed: int) -> Iterator[list[Recorded]]:
    """The commits of a number of accounts in order of time; every stream is gapless."""
    shared: dict[str, Any] = {}
    sellers = [f"S{number:03d}" for number in range(-(-accounts // ACCOUNTS_PER_SELLER))]
    for seller in sellers:
        stream = PRICE_LIST.stream(price_list_id(seller, "EUR"))
        prices = PublishPriceList(
            at=BEGIN,
            seller=seller,
            currency="EUR",
            version=1,
            valid_from=date(2026, 1, 1),
            offers=OFFERS,
            taxes=(TaxRule(country="DE", rate_bp=19_00),),
        )
        (published,) = PRICE_LIST.decide(prices, PRICE_LIST.initial)
        assert isinstance(published, PriceListPublished)
        shared[stream] = PRICE_LIST.evolve(PRICE_LIST.initial, published)
        yield [Recorded(stream, 1, published, None, Cause("admin:ada", f"prices-{seller}"), BEGIN)]
    versions: dict[str, int] = {}
    stories = []
    for number in range(accounts):
        random = Random(f"{seed}/{number}")  # noqa: S311 - repeatable, not a secret
        stories.append(Story(number, random, shared, _Versions(versions), sellers[number % len(sellers)]))
    yield from _in_order_of_time(stories)


class _Versions(dict[str, int]):
    """The versions of a story's own streams and of the streams that all stories share."""

    def __init__(self, shared: dict[str, int]) -> None:
        super().__init__()
        self._shared = shared

    def get(self, stream: str, default: Any = None) -> Any:  # noqa: ANN401 - as in dict
        return (
            self._shared.get(stream, default) if stream.startswith("invoice_series") else super().get(stream, default)
        )

    def __getitem__(self, stream: str) -> int:
        return self._shared[stream] if stream.startswith("invoice_series") else super().__getitem__(stream)

    def __setitem__(self, stream: str, version: int) -> None:
        if stream.startswith("invoice_series"):
            self._shared[stream] = version
        else:
            super().__setitem__(stream, version)


def _in_order_of_time(stories: Sequence[Story]) -> Iterator[list[Recorded]]:
    """The next unit of the story with the earliest clock, decided at that moment, so that shared streams keep order."""
    waiting = [(story.at, story.number, story.units()) for story in stories]
    heapq.heapify(waiting)
    while waiting:
        _, number, units = heapq.heappop(waiting)
        if (unit := next(units, None)) is not None:
            yield unit
            heapq.heappush(waiting, (stories[number].at, number, units))


def write(
    database_url: str, log: Log, units: Iterator[list[Recorded]], on_progress: Callable[[int], object] = int
) -> int:
    """Append commits to the log, as many per flush as its group commit takes. Returns the number of events.

    A commit that cannot share a flush waits for the next one, and later commits of the same account or stream wait for
    it. ``on_progress`` is called from time to time with the number of events written.
    """
    writer, count = GroupCommit(lambda: connect(database_url, WRITER), log.notifier.notify), 0
    try:
        waiting: list[tuple[Append, set[str], int]] = []
        while True:
            group, later, keys = [], [], set[str]()
            for candidate in chain(waiting, _packed(log, islice(units, GROUP_MAX - len(waiting)))):
                append, its_keys, events = candidate
                if keys.isdisjoint(its_keys):
                    group.append(append)
                    count += events
                else:
                    later.append(candidate)
                keys |= its_keys
            if not group:
                return count
            writer.append_all(group)
            on_progress(count)
            waiting = later
    finally:
        writer.close()


def _packed(log: Log, units: Iterable[list[Recorded]]) -> Iterator[tuple[Append, set[str], int]]:
    for unit in units:
        append = Append([log.encoded(recorded) for recorded in unit])
        yield append, {*append.keys, f"account {unit[0].account_id}"}, len(unit)


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _digested(units: Iterator[list[Recorded]], digest: _Digest) -> Iterator[list[Recorded]]:
    for unit in units:
        for recorded in unit:
            digest.update(f"{recorded.stream} {recorded.version} {recorded.event.TOPIC} ".encode())
            digest.update(recorded.event.model_dump_json().encode())
        yield unit


def told_history(accounts: int, seed: int, *, as_json: bool) -> None:
    """Write a history to the log of TRUNKLINE_DATABASE_URL, or to a temporary one if it is not set.

    Prints the number of events of each topic and a digest of all events, which is the same for the same history. (The
    log's own hashes differ each time, because personal data is encrypted.)
    """
    with ExitStack() as stack:
        given = settings()
        key = decoded_master_key(given.master_key) if given.master_key else MASTER_KEY
        if (database_url := given.database_url) is None:
            owner_url = stack.enter_context(embedded_postgres(stack.enter_context(temporary_directory())))
            migrate(owner_url)
            database_url = program_login(owner_url)
            admit(owner_url, database_url)
        log = stack.enter_context(postgres_log(database_url, master_key=key))
        if log.head():
            sys.stderr.write(f"The log is not empty: it has {log.head():,} events. Write a history to an empty log.\n")
            sys.exit(1)
        with Progress(console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as progress:
            task = progress.add_task("events", total=None)
            begun = time.monotonic()
            digest = sha256()
            units = _digested(history(accounts, seed), digest)
            count = write(database_url, log, units, lambda n: progress.update(task, completed=n))
            took_s = time.monotonic() - begun
        with connect(database_url) as conn:
            found = conn.execute("SELECT topic, count(*) AS n FROM log.events GROUP BY topic ORDER BY n DESC, topic")
            by_topic = {row["topic"]: row["n"] for row in found}
    if as_json:
        report = {
            "accounts": accounts,
            "seed": seed,
            "events": count,
            "digest": digest.hexdigest(),
            "by_topic": by_topic,
        }
        sys.stdout.write(to_json(report, indent=2).decode() + "\n")
        return
    for topic, n in by_topic.items():
        print(f"{n:>10,} {topic}")
    print(f"{count:>10,} events of {accounts:,} accounts in {took_s:.1f} s; digest {digest.hexdigest()}")
