"""The whole purchase in memory: deliveries twice, late, in every order, and with crashes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import cache
from itertools import permutations
from typing import Any

import pytest

import handlers.use_cases.invoicing
import infra.mail.messages
from domain.account import OpenAccount
from domain.allocation import ALLOCATION
from domain.invoice import CreditNoteIssued, InvoiceEmailed, InvoiceIssued
from domain.invoice_link import LinkConsumed, LinkIssued, LinkRefused, LinkRevoked, UnknownLink
from domain.invoice_series import InvoiceNumberAssigned
from domain.messages import Event, Message, Refusal
from domain.money import Money
from domain.order import (
    ORDER,
    AsideReason,
    ExpansionRequested,
    ExpireOrder,
    Method,
    OrderCancelled,
    OrderExpired,
    OrderFulfilled,
    PaymentCaptured,
    PaymentRefunded,
    PaymentSetAside,
    Status,
)
from domain.payment_reference import PaymentReferenceClaimed
from domain.quote import Term
from domain.subscription import SUBSCRIPTION, CapacityExpanded
from handlers.context import SYSTEM
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.reactions_consumer import EventNotInLog, follow
from handlers.reactions import REACTIONS
from handlers.requests import (
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    ReconcileCapture,
    RenewInvoiceLink,
    UseInvoiceLink,
)
from handlers.use_cases.invoicing import credit_note_id_of
from infra.event_log.log import Log
from infra.event_log.unit_of_work import UnitOfWork
from infra.payments.provider import Capture
from tests.support.examples import DEADLINE, LATER, activate, create_factory, eur, open_account, publish
from tests.support.given_domain import but
from tests.support.in_memory import (
    ADA,
    CHARGED,
    MANNY,
    Choice,
    InMemory,
    Next,
    cancel_order,
    check_out,
    complete,
    confirm,
    in_every_order,
    invoice_of,
    link_of,
    on_the_wire,
    order,
    refund,
    text_of,
    token_of,
)

note = ReconcileCapture(capture_id="capture-1")
renew = RenewInvoiceLink(invoice_id=invoice_of())
use = UseInvoiceLink(token=token_of())

GRANTED = ["OrderFulfilled", "CapacityExpanded", "CapacityExpanded", "ServiceSubscribed", "CapacityGranted"]
INVOICED = ["InvoiceNumberAssigned", "InvoiceIssued", "LinkIssued", "InvoiceEmailed"]
BEFORE = {"extensions": 100, "ultimate_plan": 20}
AFTER = {"extensions": 150, "ultimate_plan": 40}


@pytest.fixture
def _printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draft renders the same bytes and the same mail, so each is rendered once for all runs of a test."""
    for name in ("render_invoice", "render_credit_note"):
        render = getattr(handlers.use_cases.invoicing, name)
        drafts: dict[str, Any] = {}

        @cache
        def rendered(text: str, render: Callable[[Any], bytes] = render, drafts: dict[str, Any] = drafts) -> bytes:
            return render(drafts[text])

        def once(draft: Any, drafts: dict[str, Any] = drafts, rendered: Callable[[str], bytes] = rendered) -> bytes:  # noqa: ANN401 - either draft
            text = draft.model_dump_json()
            drafts[text] = draft
            return rendered(text)

        monkeypatch.setattr(handlers.use_cases.invoicing, name, once)
    for name in ("invoice_mail", "credit_note_mail"):
        compose = getattr(infra.mail.messages, name)
        composed: dict[str, Any] = {}

        def written(issued: Any, compose: Any = compose, composed: dict[str, Any] = composed, **facts: Any) -> Any:  # noqa: ANN401 - either document
            key = f"{issued.document.sha256} {facts['message_id']}"
            if key not in composed:
                composed[key] = compose(issued, **facts)
            return composed[key]

        monkeypatch.setattr(infra.mail.messages, name, written)


def totals(store: InMemory) -> dict[str, int]:
    """The package's units by service; checks that the pool agrees."""
    package = UnitOfWork(store.dependencies.log).state(SUBSCRIPTION, "pkg-acme")
    pool = UnitOfWork(store.dependencies.log).state(ALLOCATION, "pkg-acme")
    assert dict(pool.totals) == dict(package.totals)
    return dict(package.totals)


def status(store: InMemory, order_id: str = "order-1") -> Status:
    return UnitOfWork(store.dependencies.log).state(ORDER, order_id).status


def numbers(store: InMemory) -> list[str]:
    return [event.number for event in store.all(InvoiceNumberAssigned)]


def minor(amounts: list[Money]) -> int:
    return sum(amount.amount_minor for amount in amounts)


def assert_books_balance(store: InMemory) -> None:
    """Check that invoices less credit notes equal payments for grants less refunds."""
    invoiced = minor([event.quote.total for event in store.all(InvoiceIssued)])
    credited = minor([event.total for event in store.all(CreditNoteIssued)])
    fulfilled = {event.order_id for event in store.all(OrderFulfilled)}
    paid = minor([event.amount for event in store.all(PaymentCaptured) if event.order_id in fulfilled])
    returned = minor([event.amount for event in store.all(PaymentRefunded) if event.order_id in fulfilled])
    assert invoiced - credited == paid - returned


def assert_nothing_twice(store: InMemory) -> None:
    """Check that everything was done once, however often it was delivered."""
    assert {event.order_id for event in store.all(OrderFulfilled)} >= {
        event.order_id for event in store.all(InvoiceIssued)
    }
    for kind, key in ONCE.items():
        happened = Counter(getattr(event, key) for event in store.all(kind))
        assert set(happened.values()) <= {1}, f"{kind.__name__}: {happened}"
    sequence = [event.sequence for event in store.all(InvoiceNumberAssigned)]
    assert sequence == list(range(1, len(sequence) + 1))
    assert len(sequence) == len(store.all(InvoiceIssued)) + len(store.all(CreditNoteIssued))


ONCE: dict[type[Event], str] = {
    PaymentCaptured: "order_id",
    OrderFulfilled: "order_id",
    InvoiceIssued: "order_id",
    InvoiceEmailed: "link_id",
    LinkIssued: "link_id",
    InvoiceNumberAssigned: "document_id",
    CreditNoteIssued: "refund_id",
    PaymentRefunded: "refund_id",
}


# --- the happy path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Method.PAYPAL, Method.CARD])
def test_an_order_paid_at_the_provider_is_granted_invoiced_and_mailed(store: InMemory, method: Method) -> None:
    store.placed(method).provider.approve()
    before = store.head
    store.ask(complete())
    store.settle()

    names = [type(event).__name__ for event in store.since(before)]
    assert names == ["PaymentReferenceClaimed", "PaymentCaptured", *GRANTED, *INVOICED]
    assert totals(store) == AFTER
    assert store.one(PaymentReferenceClaimed).reference == "stand-in:capture-1"
    assert store.one(InvoiceIssued).method is method


def test_an_order_paid_offline_is_granted_invoiced_and_mailed(store: InMemory) -> None:
    store.offline().settle()
    (told,) = store.mailer.messages
    assert "dora@yt.example" in str(told["To"])

    before = store.head
    store.ask(confirm())
    store.settle()

    names = [type(event).__name__ for event in store.since(before)]
    assert names == ["PaymentCaptured", *GRANTED, *INVOICED]
    assert store.one(InvoiceIssued).pi_number == "PI-2026-7"
    assert store.one(PaymentCaptured).capture_id == "offline:PI-2026-7"


def test_the_mail_carries_the_link_that_opens_the_invoice(store: InMemory) -> None:
    store.settled()

    (mail,) = store.mailer.to("wonka@acme.example")
    assert f"https://orders.yt.example/invoices/{token_of()}" in text_of(mail)
    assert store.ask(use).answer.content.startswith(b"%PDF")


def test_reactions_carry_the_correlation_id_of_the_request_and_the_causing_event(store: InMemory) -> None:
    store.settled()

    history = list(store.dependencies.log.history())
    by_name = {type(recorded.event).__name__: recorded for recorded in history}
    assert {recorded.cause.correlation_id for recorded in history} == {"wish-1"}
    for event, cause in (
        ("OrderFulfilled", "PaymentCaptured"),
        ("InvoiceIssued", "OrderFulfilled"),
        ("InvoiceEmailed", "LinkIssued"),
    ):
        assert by_name[event].cause.causation_id == str(by_name[cause].event_id)
        assert by_name[event].cause.actor == "system:trunkline"


def test_nothing_is_granted_before_it_is_paid(store: InMemory) -> None:
    store.placed().settle()

    assert totals(store) == BEFORE
    assert store.mailer.messages == []


# --- delivered twice, late, in every order -------------------------------------------------------------------------


@pytest.mark.usefixtures("_printed_once")
def test_reactions_delivered_twice_in_every_order_happen_once() -> None:
    def run(choose: Choice) -> None:
        store = InMemory().just_paid()
        store.settle(choose, times=2)

        assert_nothing_twice(store)
        assert store.names()[-9:] == [*GRANTED, *INVOICED]
        assert len(store.mailer.to("wonka@acme.example")) == 1

    assert in_every_order(run) == 15, "the number of interleavings of three successive deliveries, twice each"


@pytest.mark.usefixtures("_printed_once")
def test_reactions_delivered_again_three_days_later_in_every_order_change_nothing(store: InMemory) -> None:
    store.settled()
    names = store.names()
    store.clock.advance(timedelta(days=3))

    for again in permutations(store.everything_due()):
        for due in again:
            store.deliver(due)

    assert store.names() == names
    assert len(store.mailer.messages) == 1


@pytest.mark.usefixtures("_printed_once")
@pytest.mark.parametrize("seed", range(40))
def test_any_disorder_and_any_crash_end_in_the_same_state(seed: int) -> None:
    """Delivered three times, in any order, with crashes right after commits and a refund at any moment."""
    luck = random.Random(seed)  # noqa: S311 - must be the same on each run
    store = InMemory().just_paid()

    def choose(due: list[Next]) -> int:
        store.recorder.crashes = int(luck.random() < 0.3)
        return luck.randrange(len(due))

    store.settle(choose, times=3, wishes=[refund(eur(200_00), "custom_domain")])  # type: ignore[arg-type]
    store.recorder.crashes = 0

    assert_nothing_twice(store)
    assert_books_balance(store)
    assert totals(store) == AFTER
    package = UnitOfWork(store.dependencies.log).state(SUBSCRIPTION, "pkg-acme")
    assert dict(package.flat) == {}


@pytest.mark.parametrize("commit", range(4))
def test_a_crash_between_a_commit_and_its_acknowledgement_changes_nothing(store: InMemory, commit: int) -> None:
    store.paid()
    steps = iter(range(100))

    def choose(_due: object) -> int:
        store.recorder.crashes = int(next(steps) == commit)
        return 0

    store.settle(choose)

    assert_nothing_twice(store)
    assert store.names()[-9:] == [*GRANTED, *INVOICED]


def test_a_crash_before_the_mail_was_recorded_sends_it_again_with_the_same_message_id_and_link(
    store: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.paid()
    send, sent = store.mailer.send, []

    def send_and_die(message: Any) -> None:  # noqa: ANN401 - a message
        send(message)
        sent.append(message)
        if len(sent) == 1:
            store.recorder.rivals.append(die)

    def die() -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(store.mailer, "send", send_and_die)
    with pytest.raises(RuntimeError):
        store.settle()
    store.delivered = 0
    store.settle()

    first, second = store.mailer.messages
    assert first["Message-ID"] == second["Message-ID"]
    assert text_of(first) == text_of(second)
    assert len(store.all(InvoiceEmailed)) == 1


def test_the_collector_is_mailed_again_with_the_same_message_id_while_money_is_due(
    store: InMemory,
) -> None:
    store.offline()
    store.settle(times=2)
    assert len({mail["Message-ID"] for mail in store.mailer.to("dora@yt.example")}) == 1
    told = len(store.mailer.to("dora@yt.example"))

    store.ask(confirm())
    for due in store.everything_due():
        store.deliver(due)

    assert len(store.mailer.to("dora@yt.example")) == told


def test_while_the_mail_server_is_down_the_mail_waits_and_orders_continue(store: InMemory) -> None:
    store.paid().mailer.down = True
    store.settle(waiting=1)
    assert store.names()[-4:] == ["CapacityGranted", *INVOICED[:3]]

    store.mailer.down = False
    store.settle()
    assert store.names()[-1] == "InvoiceEmailed"
    assert len(store.mailer.messages) == 1


def test_a_message_that_names_no_event_of_the_log_is_refused(store: InMemory) -> None:
    store.paid()
    (captured,) = [
        recorded for recorded in store.dependencies.log.history() if isinstance(recorded.event, PaymentCaptured)
    ]
    (reaction,) = REACTIONS[PaymentCaptured]
    before = store.head

    for message in (
        on_the_wire(captured).model_copy(update={"position": captured.position - 1}),
        on_the_wire(captured).model_copy(update={"position": 4711}),
        on_the_wire(captured).model_copy(update={"id": "another-event"}),
    ):
        with pytest.raises(EventNotInLog, match=rf"no event {message.id} at position {message.position}"):
            follow(message, reaction, store.dependencies)

    assert store.head == before


# --- captured, refunded, cancelled ---------------------------------------------------------------------------------

NAMES = {type(complete()): "capture", type(note): "webhook", type(cancel_order): "cancel", type(refund()): "refund"}


@pytest.mark.usefixtures("_printed_once")
@pytest.mark.parametrize(
    "wishes",
    list(permutations([complete(), note, cancel_order, refund()])),
    ids=lambda wishes: "-".join(NAMES[type(wish)] for wish in wishes),
)
@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "settled-between"])
def test_capture_refund_and_cancellation_in_any_order(
    store: InMemory, wishes: tuple[Message, ...], at_once: bool
) -> None:
    """The provider has captured the payment; its answer was lost, and its webhook comes at some point."""
    store.taken()
    for wish in wishes:
        ask_if_permitted(store, wish)
        if not at_once:
            store.settle()
    store.settle()

    first = next(wish for wish in wishes if wish in (complete(), note, cancel_order))
    if first == cancel_order:
        assert status(store) is Status.CANCELLED
        assert store.one(PaymentSetAside).reason is AsideReason.CANCELLED
        assert store.all(PaymentCaptured) == []
    else:
        refunded = wishes.index(refund()) > wishes.index(first)
        assert store.one(PaymentCaptured).capture_id == "capture-1"
        assert store.all(OrderCancelled) == []
        assert status(store) is (Status.REFUNDED if refunded else Status.FULFILLED)
        assert totals(store) == (BEFORE if refunded else AFTER)
    assert_nothing_twice(store)
    assert_books_balance(store)


def ask_if_permitted(store: InMemory, wish: Message) -> None:
    """A person sends a request; if it is refused, nothing is written."""
    before = store.head
    try:
        store.ask(wish)
    except Refusal:
        assert store.head == before


@pytest.mark.usefixtures("_printed_once")
@pytest.mark.parametrize(
    ("wish", "left"),
    [
        (refund(), {}),
        (refund(eur(200_00), "extensions", "ultimate_plan"), {"custom_domain": "order-1"}),
    ],
    ids=["in whole", "in part"],
)
def test_a_refund_at_any_moment_in_any_order_leaves_books_and_package_right(
    wish: Message, left: dict[str, str]
) -> None:
    def run(choose: Choice) -> None:
        store = InMemory().just_paid()
        done = store.settle(choose, wishes=[wish])

        trace = ", ".join(map(str, done))
        assert_nothing_twice(store)
        assert_books_balance(store)
        package = UnitOfWork(store.dependencies.log).state(SUBSCRIPTION, "pkg-acme")
        assert dict(package.flat) == left, trace
        assert totals(store) == BEFORE, trace

    assert in_every_order(run) > 30


# --- money back ----------------------------------------------------------------------------------------------------


def test_a_full_refund_returns_the_money_reverses_the_grant_and_credits_the_invoice(store: InMemory) -> None:
    store.refunded().settle()

    assert store.provider.refunds == {("capture-1", "refund-1"): CHARGED}
    assert totals(store) == BEFORE
    invoice, credit_note = store.one(InvoiceIssued), store.one(CreditNoteIssued)
    assert (credit_note.invoice_number, credit_note.number) == (invoice.number, "YT-2026-000002")
    assert (credit_note.total, credit_note.net, credit_note.taxes) == (CHARGED, eur(459_90), invoice.quote.taxes)
    (mail,) = [mail for mail in store.mailer.messages if "Credit note" in str(mail["Subject"])]
    (attached,) = mail.iter_attachments()
    assert hashlib.sha256(attached.get_content()).hexdigest() == credit_note.document.sha256


def test_two_partial_refunds_have_two_credit_notes_that_add_up(store: InMemory) -> None:
    store.settled()
    store.ask(refund(eur(100_00)))
    store.ask(refund(eur(444_65), refund_id="refund-2"))
    store.settle()

    assert numbers(store) == ["YT-2026-000001", "YT-2026-000002", "YT-2026-000003"]
    assert minor([event.total for event in store.all(CreditNoteIssued)]) == 544_65
    assert status(store) is Status.REFUNDED
    assert totals(store) == BEFORE
    assert_books_balance(store)


def test_a_repeated_refund_reaches_the_provider_once(store: InMemory) -> None:
    store.settled()
    for _ in range(3):
        store.ask(refund(eur(100_00)))

    assert store.provider.refunds == {("capture-1", "refund-1"): eur(100_00)}
    assert len(store.all(PaymentRefunded)) == 1


def test_an_offline_refund_does_not_reach_the_provider(store: InMemory) -> None:
    store.offline().ask(confirm())
    store.settle()
    store.ask(refund())
    store.settle()

    assert store.provider.refunds == {}
    assert store.one(CreditNoteIssued).total == CHARGED


# --- orders that no longer fit -------------------------------------------------------------------------------------


def two_that_exceed_the_carve_out(store: InMemory) -> None:
    """100 extensions, 20 of them Ultimate; two orders of 50 Ultimate each are accepted and approved."""
    store.opened()
    for number in (1, 2):
        store.ask(order(f"order-{number}", ultimate_plan=50))
        store.ask(check_out(Method.PAYPAL, f"order-{number}"))
        store.provider.approve(f"checkout-{number}")
    store.settle()


def pay(store: InMemory, number: int) -> None:
    store.ask(complete(f"checkout-{number}", f"order-{number}"))


@pytest.mark.usefixtures("_printed_once")
def test_the_second_of_two_orders_that_together_exceed_the_carve_out_is_set_aside_and_not_invoiced() -> None:
    def run(choose: Choice) -> None:
        store = InMemory()
        two_that_exceed_the_carve_out(store)
        for number in (1, 2):
            pay(store, number)
        store.settle(choose)

        fulfilled = store.one(OrderFulfilled)
        aside = store.one(PaymentSetAside)
        assert {fulfilled.order_id, aside.order_id} == {"order-1", "order-2"}
        assert (aside.reason, aside.amount.amount_minor) == (AsideReason.NO_LONGER_FITS, 217_18)
        assert aside.explanation.startswith("120 extensions on the Ultimate Plan are more than the package's 100")
        assert store.one(InvoiceIssued).order_id == fulfilled.order_id
        assert totals(store) == {"extensions": 100, "ultimate_plan": 70}

    assert in_every_order(run) == 6


@pytest.mark.usefixtures("_printed_once")
def test_a_payment_set_aside_stays_so_when_it_is_redelivered(store: InMemory) -> None:
    two_that_exceed_the_carve_out(store)
    for number in (1, 2):
        pay(store, number)
    store.settle(times=3)
    names = store.names()
    for due in store.everything_due():
        store.deliver(due)

    assert store.names() == names
    with pytest.raises(Refusal, match=r"The order is paid; it is invoiced once it is fulfilled\."):
        store.ask(InvoiceFulfilledOrder(order_id="order-2"))


@pytest.mark.usefixtures("_printed_once")
@pytest.mark.parametrize("amount", [None, eur(100_00)], ids=["in whole", "in part"])
def test_a_payment_set_aside_is_refunded_without_a_credit_note_because_there_is_no_invoice(
    amount: Money | None,
) -> None:
    def run(choose: Choice) -> None:
        store = InMemory()
        two_that_exceed_the_carve_out(store)
        pay(store, 1)
        store.settle()
        pay(store, 2)
        store.settle(choose, wishes=[but(refund(amount), order_id="order-2")])

        assert store.all(CreditNoteIssued) == []
        assert store.one(InvoiceIssued).order_id == "order-1"
        assert len(store.provider.refunds) == 1
        assert_books_balance(store)

    assert in_every_order(run) > 5


def test_a_refund_of_allocated_capacity_over_allocates_the_package_and_leaves_pbxs_alone(
    store: InMemory,
) -> None:
    store.settled()
    store.ask(but(create_factory, extensions=110))
    store.ask(refund())
    store.settle()

    pool = UnitOfWork(store.dependencies.log).state(ALLOCATION, "pkg-acme")
    assert (pool.totals["extensions"], pool.allocated("extensions")) == (100, 110)


# --- late, unknown, and other amounts ------------------------------------------------------------------------------


def test_a_payment_after_expiry_is_set_aside_and_fulfils_nothing(store: InMemory) -> None:
    store.placed()
    store.clock.at = DEADLINE
    store.ask(ExpireOrder(at=DEADLINE, order_id="order-1"))
    store.provider.approve()
    store.provider.capture("checkout-1")
    store.ask(note)
    store.settle()

    assert store.one(PaymentSetAside).reason is AsideReason.EXPIRED
    assert store.all(OrderFulfilled) == []
    assert totals(store) == BEFORE


def test_a_payment_after_the_deadline_closes_an_open_order(store: InMemory) -> None:
    store.placed().provider.approve()
    store.clock.at = DEADLINE
    store.provider.capture("checkout-1")
    store.ask(note)
    store.settle()

    assert store.one(OrderExpired).expired_at == DEADLINE
    assert store.one(PaymentSetAside).reason is AsideReason.EXPIRED
    assert totals(store) == BEFORE


def test_a_payment_captured_in_time_counts_even_if_reported_late(store: InMemory) -> None:
    store.taken()
    store.clock.at = DEADLINE + timedelta(days=3)
    store.ask(note)
    store.settle()

    assert status(store) is Status.FULFILLED


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        (eur(544_64), AsideReason.AMOUNT_DIFFERS),
        (eur(544_66), AsideReason.AMOUNT_DIFFERS),
        (Money(amount_minor=544_65, currency="CHF"), AsideReason.CURRENCY_DIFFERS),
    ],
    ids=["a cent less", "a cent more", "francs"],
)
def test_a_wrong_amount_is_set_aside_and_the_right_one_can_follow(
    store: InMemory, amount: Money, reason: AsideReason
) -> None:
    store.approved()
    strange = Capture(
        capture_id="capture-7",
        checkout_id="checkout-7",
        order_id="order-1",
        method=Method.PAYPAL,
        amount=amount,
        captured_at=LATER,
    )
    store.provider.captures["capture-7"] = strange
    store.ask(ReconcileCapture(capture_id="capture-7"))
    store.settle()
    assert (store.one(PaymentSetAside).reason, store.one(PaymentSetAside).amount) == (reason, amount)
    assert store.all(OrderFulfilled) == []

    store.ask(complete())
    store.settle()
    assert store.one(InvoiceIssued).capture_id == "capture-1"


@pytest.mark.parametrize("order_id", ["order-1", "o" * 100], ids=["short", "as long as an id may be"])
@pytest.mark.parametrize("pi_number", ["PI/2026/7", None], ids=["with a PI number", "without"])
def test_a_wrong_offline_amount_is_set_aside_and_can_be_corrected(
    store: InMemory, order_id: str, pi_number: str | None
) -> None:
    store.opened().ask(order(order_id))
    store.ask(check_out(Method.OFFLINE, order_id, pi_number))
    for _ in range(2):
        store.ask(confirm(eur(54_465), order_id), MANNY)
        store.ask(confirm(eur(544_56), order_id), MANNY)
    store.ask(confirm(eur(544_65), order_id), MANNY)
    store.settle()

    assert [event.amount for event in store.all(PaymentSetAside)] == [eur(544_56)]
    assert len(store.all(InvoiceIssued)) == 1


def test_a_second_payment_of_a_paid_order_is_set_aside(store: InMemory) -> None:
    store.settled()
    second = but(store.provider.captures["capture-1"], capture_id="capture-2")
    store.provider.captures["capture-2"] = second
    store.ask(ReconcileCapture(capture_id="capture-2"))
    store.settle()

    assert store.one(PaymentSetAside).reason is AsideReason.ALREADY_PAID
    assert_nothing_twice(store)


def test_a_capture_reported_for_an_unknown_order_is_refused(store: InMemory) -> None:
    store.taken()
    store.provider.captures["capture-1"] = but(store.provider.captures["capture-1"], order_id="order-4711")
    before = store.head
    with pytest.raises(Refusal, match=r"There is no order order-4711; name one of the account's own orders\."):
        store.ask(note)

    assert store.head == before


# --- the link and the document -------------------------------------------------------------------------------------


def test_a_new_link_revokes_the_earlier_one_and_is_mailed(store: InMemory) -> None:
    store.settled().ask(renew)
    store.settle()

    assert store.one(LinkRevoked).link_id == link_of()
    with pytest.raises(UnknownLink):
        store.ask(use)
    assert store.one(LinkRefused).reason == "revoked"
    (_, mail) = store.mailer.to("wonka@acme.example")
    assert token_of(ordinal=2) in text_of(mail)
    assert store.ask(UseInvoiceLink(token=token_of(ordinal=2))).answer.content.startswith(b"%PDF")


def test_a_link_that_was_used_is_not_revoked_as_well(store: InMemory) -> None:
    store.settled().ask(use)
    store.ask(renew)

    assert store.all(LinkRevoked) == []
    assert [link.ordinal for link in store.all(LinkIssued)] == [1, 2]


def test_a_link_is_not_spent_if_the_document_cannot_be_read(store: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_sha256: str) -> None:
        raise OSError("the database is away")

    store.settled()
    with monkeypatch.context() as patch:
        patch.setattr(store.recorder, "document", broken)
        with pytest.raises(OSError, match="away"):
            store.ask(use)

    assert store.all(LinkConsumed) == []
    assert store.ask(use).answer.content.startswith(b"%PDF")


def test_the_bytes_of_every_document_hash_to_what_its_event_says(store: InMemory) -> None:
    store.refunded().settle()

    for issued in (store.one(InvoiceIssued), store.one(CreditNoteIssued)):
        kept = store.dependencies.log.document(issued.document.sha256)
        assert kept is not None
        assert hashlib.sha256(kept.content).hexdigest() == issued.document.sha256
        assert (len(kept.content), kept.media_type) == (issued.document.size_bytes, issued.document.media_type)
        assert kept.content.startswith(b"%PDF")


def test_ids_of_invoices_and_credit_notes_derive_from_the_order_and_the_refund(store: InMemory) -> None:
    store.refunded().settle()

    assert store.one(InvoiceIssued).invoice_id == invoice_of()
    assert store.one(CreditNoteIssued).credit_note_id == credit_note_id_of("order-1", "refund-1")


def test_a_new_year_begins_a_new_series(store: InMemory) -> None:
    across = Term(starts_on=date(2026, 7, 1), ends_on=date(2027, 7, 1))
    for message in (publish, open_account, but(activate, term=across)):
        store.ask(message)
    for number, moment in enumerate(("2026-12-31T23:59:59", "2027-01-01T00:00:00", "2027-01-01T00:00:01"), start=1):
        store.clock.at = datetime.fromisoformat(f"{moment}+00:00")
        store.ask(order(f"order-{number}", extensions=1))
        store.ask(check_out(Method.OFFLINE, f"order-{number}"))
        store.ask(confirm(store.all(ExpansionRequested)[-1].quote.total, f"order-{number}"))
        store.settle()

    assert numbers(store) == ["YT-2026-000001", "YT-2027-000001", "YT-2027-000002"]


# --- concurrency on PostgreSQL -------------------------------------------------------------------------------------


def test_fifty_orders_invoiced_by_eight_threads_have_fifty_numbers_without_a_gap(postgres: Log) -> None:
    store = InMemory()
    real = replace(store.dependencies, log=postgres)
    with ThreadPoolExecutor(8) as threads:
        accounts = [f"account-{number}" for number in range(10)]
        handle(publish, real, ADA, correlation_id="fifty")
        list(threads.map(lambda account: list(paid_orders(real, account, 5)), accounts))
        order_ids = [f"{account}-order-{n}" for account in accounts for n in range(5)]

        def invoice(order_id: str) -> None:
            handle(FulfilPaidOrder(order_id=order_id), real, SYSTEM, correlation_id="fifty")
            handle(InvoiceFulfilledOrder(order_id=order_id), real, SYSTEM, correlation_id="fifty")

        list(threads.map(invoice, order_ids))

    events = [recorded.event for recorded in postgres.history()]
    assigned = [event for event in events if isinstance(event, InvoiceNumberAssigned)]
    issued = {event.number: event for event in events if isinstance(event, InvoiceIssued)}
    assert [event.sequence for event in assigned] == list(range(1, 51))
    assert {event.number: event.document_id for event in assigned} == {
        number: event.invoice_id for number, event in issued.items()
    }
    assert {event.order_id for event in issued.values()} == set(order_ids)
    expanded = Counter(event.package_id for event in events if isinstance(event, CapacityExpanded))
    assert expanded == {f"pkg-{account}": 5 for account in accounts}


def paid_orders(dependencies: Dependencies, account_id: str, count: int) -> list[str]:
    """An account with paid orders of one extension each."""
    opening: OpenAccount = but(open_account, account_id=account_id)
    package_id = f"pkg-{account_id}"

    def ask(message: Message, actor: Any = ADA) -> None:  # noqa: ANN401 - an actor
        handle(message, dependencies, actor, correlation_id="fifty")

    ask(opening)
    ask(but(activate, account_id=account_id, package_id=package_id))
    order_ids = [f"{account_id}-order-{n}" for n in range(count)]
    for order_id in order_ids:
        wish = but(order(order_id, extensions=1), account_id=account_id, package_id=package_id)
        outcome = handle(wish, dependencies, ADA, correlation_id="fifty")
        requested = outcome.context.recorded[0].event
        assert isinstance(requested, ExpansionRequested)
        ask(but(check_out(Method.OFFLINE, order_id), account_id=account_id))
        ask(confirm(requested.quote.total, order_id), MANNY)
    return order_ids
