"""Every request and command: accepted, repeated, refused, conflicting, and not permitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import pytest
import tenacity

from domain.account import (
    AccountExists,
    AccountOpened,
    AddBillingReceiver,
    BillingReceiverAdded,
    BillingReceiverChanged,
    BillingReceiverErased,
    BillingReceiverExists,
    BillingReceiverGone,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    DefaultBillingReceiverChosen,
    EraseBillingReceiver,
    OpenAccount,
    UnknownAccount,
    UnknownBillingReceiver,
)
from domain.allocation import (
    AllocateCapacity,
    AlreadyHighlyAvailable,
    CapacityAllocated,
    CapacityGranted,
    CapacityReleased,
    CapacityWithdrawn,
    CreatePbx,
    GrantCapacity,
    NotReleasable,
    PbxCreated,
    PbxExists,
    PbxRemoved,
    PbxUpgraded,
    PoolExhausted,
    ReleaseCapacity,
    RemovePbx,
    ServiceNotForPbxs,
    UltimateNotAllocatable,
    UnitsNotPossible,
    UnknownPbx,
    UnknownPool,
    UpgradePbx,
    WithdrawCapacity,
)
from domain.invoice import (
    CreditNoteIssued,
    DeleteDocument,
    InvoiceEmailed,
    InvoiceIssued,
    IssueCreditNote,
    IssueInvoice,
    NoDocument,
    RecordInvoiceEmailed,
    UnknownInvoice,
)
from domain.invoice_link import (
    ConsumeLink,
    IssueLink,
    LinkConsumed,
    LinkIssued,
    LinkRefused,
    LinkRevoked,
    RevokeLink,
    UnknownLink,
)
from domain.invoice_series import AssignInvoiceNumber, InvoiceNumberAssigned
from domain.messages import Command, Event, Message, Refusal
from domain.money import Money
from domain.order import (
    BillingContactChosen,
    CancelOrder,
    CapturePayment,
    ChooseBillingContact,
    DeclinePayment,
    ExpansionRequested,
    ExpireOrder,
    FulfilOrder,
    Method,
    NothingToPay,
    NotPaid,
    NotYetExpired,
    OrderCancelled,
    OrderClosed,
    OrderExists,
    OrderExpired,
    OrderFulfilled,
    OrderPlaced,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentSetAside,
    PiNumberNeedsOffline,
    PlaceOrder,
    RefundNotPossible,
    RefundPayment,
    RequestExpansion,
    SetPaymentAside,
    UnknownOrder,
    UnknownRefund,
)
from domain.payment_reference import ClaimPaymentReference, PaymentReferenceClaimed, PaymentReferenceTaken
from domain.price_list import (
    PriceListAmbiguous,
    PriceListOutOfOrder,
    PriceListPublished,
    PriceListVersionExists,
    PublishPriceList,
    TaxRule,
)
from domain.quote import (
    NoPriceList,
    NothingSelected,
    NotSoldThere,
    OutsideTheTerm,
    QuantityNotPossible,
    Selection,
    ServiceSelectedTwice,
    Term,
    UnknownService,
)
from domain.services import Plan
from domain.subscription import (
    ActivatePackage,
    CapacityExpanded,
    ExpandPackage,
    GrantReversed,
    PackageActivated,
    PackageExists,
    PackageNotPossible,
    ReverseGrant,
    ServiceAlreadyActive,
    ServiceSubscribed,
    UltimateExceedsExtensions,
    UnknownPackage,
)
from handlers.commands import COMMANDS
from handlers.context import SYSTEM, Actor, NotPermitted, RequestContext, Role, retry_on_conflict
from handlers.dispatch import handle
from handlers.requests import (
    BillTo,
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    IssueCreditNoteForRefund,
    MailCreditNote,
    MailInvoiceLink,
    ReconcileCapture,
    RenewInvoiceLink,
    Request,
    ReverseRefundedGrant,
    TellAccountManager,
    UseInvoiceLink,
)
from handlers.use_cases.invoicing import NotFulfilled, credit_note_id_of
from handlers.use_cases.offline_payment import NotAnOfflineOrder
from handlers.use_cases.payment import UnknownPayment
from handlers.use_cases.retention import record_deletion
from infra.event_log.log import VersionConflict
from infra.payments.provider import PaymentNotApproved
from tests.support.examples import (
    BUCKET,
    DEADLINE,
    NOW,
    OFFERS,
    TAXES,
    WONKA,
    YEAR,
    activate,
    add_receiver,
    allocate,
    change_receiver,
    choose_default,
    create_factory,
    create_shop,
    delete_document,
    erase_receiver,
    eur,
    open_account,
    publish,
    release,
    remove,
    upgrade,
)
from tests.support.given_domain import but
from tests.support.in_memory import (
    ACTORS,
    ARTHUR,
    PORTAL,
    InMemory,
    cancel_order,
    check_out,
    complete,
    confirm,
    invoice_of,
    link_of,
    order,
    permitted,
    refund,
    token_of,
)

Given = Callable[[InMemory], object]

OOMPA = but(WONKA, name="Oompa Loompa", email="oompa@acme.example")
bill_to = BillTo(order_id="order-1", account_id="acme", receiver_id="oompa", contact=OOMPA)
expire = ExpireOrder(at=DEADLINE, order_id="order-1")
fulfil = FulfilPaidOrder(order_id="order-1")
issue_invoice = InvoiceFulfilledOrder(order_id="order-1")
mail_link = MailInvoiceLink(invoice_id=invoice_of(), link_id=link_of())
use_link = UseInvoiceLink(token=token_of())
renew_link = RenewInvoiceLink(invoice_id=invoice_of())
GONE = "The document of YT-2026-000001 was deleted after its retention period."
note = ReconcileCapture(capture_id="capture-1")
reverse = ReverseRefundedGrant(order_id="order-1", refund_id="refund-1")
credit = IssueCreditNoteForRefund(order_id="order-1", refund_id="refund-1")
mail_credit = MailCreditNote(credit_note_id=credit_note_id_of("order-1", "refund-1"))
create_lab = but(create_shop, pbx_id="pbx-lab", name="Inventing room", extensions=1)


def in_which(given: Given, *messages: Message) -> Given:
    """A starting point and the requests made after it."""

    def so(store: InMemory) -> None:
        given(store)
        for message in messages:
            store.ask(message)

    return so


def nothing(_dependencies: InMemory) -> None:
    """An empty log."""


def without_a_package(store: InMemory) -> None:
    store.ask(open_account)


def fulfilled(store: InMemory) -> None:
    """Paid and granted, not invoiced yet."""
    store.paid().ask(fulfil)


def credited(store: InMemory) -> None:
    """The credit note of a full refund was issued."""
    store.refunded().settle()


def without_documents(store: InMemory) -> None:
    """Its document was deleted, as years later. The clock has not moved, so that the link is still valid."""
    credited(store)
    now, store.clock.at = store.clock.at, delete_document.at
    for document_id in (invoice_of(), mail_credit.credit_note_id):
        record_deletion(
            document_id, delete_document.kept_years, RequestContext(store.dependencies, SYSTEM, "retention")
        )
    store.clock.at = now


def two_fulfilled(store: InMemory) -> None:
    """Two orders, both fulfilled, neither invoiced."""
    fulfilled(store)
    store.ask(order("order-2", extensions=1))
    store.ask(check_out(Method.PAYPAL, "order-2"))
    store.provider.approve("checkout-2")
    store.ask(complete("checkout-2", "order-2"))
    store.ask(FulfilPaidOrder(order_id="order-2"))


# --- accepted, repeated, conflicting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """A request and its outcome.

    Attributes:
        given: the history.
        message: the request.
        events: the events it appends.
        rival: the request that commits between our load and our commit; None if the request appends nothing.
        then: the events that we append after that, or the reason for our refusal.
    """

    given: Given
    message: Message
    events: tuple[type[Event], ...]
    rival: Message | None
    then: tuple[type[Event], ...] | type[Refusal] = ()


GRANT = (CapacityExpanded, CapacityExpanded, ServiceSubscribed, CapacityGranted)
ISSUE = (InvoiceNumberAssigned, InvoiceIssued, LinkIssued)

WISHES = (
    Wish(nothing, publish, (PriceListPublished,), rival=publish, then=()),
    Wish(
        nothing,
        open_account,
        (AccountOpened, BillingReceiverAdded, DefaultBillingReceiverChosen),
        rival=but(open_account, name="Slugworth"),
        then=AccountExists,
    ),
    Wish(
        InMemory.opened,
        add_receiver,
        (BillingReceiverAdded,),
        rival=change_receiver,
        then=(BillingReceiverAdded,),
    ),
    Wish(
        InMemory.opened,
        change_receiver,
        (BillingReceiverChanged,),
        rival=add_receiver,
        then=(BillingReceiverChanged,),
    ),
    Wish(
        in_which(InMemory.opened, add_receiver),
        choose_default,
        (DefaultBillingReceiverChosen,),
        rival=change_receiver,
        then=(DefaultBillingReceiverChosen,),
    ),
    Wish(
        InMemory.opened,
        erase_receiver,
        (BillingReceiverErased,),
        rival=change_receiver,
        then=(BillingReceiverErased,),
    ),
    Wish(
        without_a_package,
        activate,
        (PackageActivated, CapacityGranted),
        rival=but(activate, quantities={"extensions": 7}),
        then=PackageExists,
    ),
    Wish(
        InMemory.opened,
        order(),
        (ExpansionRequested, BillingContactChosen),
        rival=order(extensions=1),
        then=OrderExists,
    ),
    Wish(
        InMemory.placed,
        bill_to,
        (BillingReceiverAdded, BillingContactChosen),
        rival=cancel_order,
        then=OrderClosed,
    ),
    Wish(
        InMemory.ordered,
        check_out(Method.OFFLINE, pi_number="PI-2026-7"),
        (OrderPlaced, PaymentReferenceClaimed),
        rival=bill_to,
        then=(OrderPlaced, PaymentReferenceClaimed),
    ),
    Wish(
        InMemory.approved,
        complete(),
        (PaymentReferenceClaimed, PaymentCaptured),
        rival=cancel_order,
        then=(PaymentReferenceClaimed, PaymentSetAside),
    ),
    Wish(
        InMemory.taken,
        note,
        (PaymentReferenceClaimed, PaymentCaptured),
        rival=complete(),
        then=(),
    ),
    Wish(InMemory.offline, confirm(), (PaymentCaptured,), rival=cancel_order, then=(PaymentSetAside,)),
    Wish(InMemory.placed, cancel_order, (OrderCancelled,), rival=bill_to, then=(OrderCancelled,)),
    Wish(InMemory.taken, expire, (OrderExpired,), rival=note, then=()),
    Wish(InMemory.paid, fulfil, (OrderFulfilled, *GRANT), rival=create_factory, then=(OrderFulfilled, *GRANT)),
    Wish(two_fulfilled, issue_invoice, ISSUE, rival=InvoiceFulfilledOrder(order_id="order-2"), then=ISSUE),
    Wish(
        in_which(two_fulfilled, issue_invoice),
        mail_link,
        (InvoiceEmailed,),
        rival=mail_link,
        then=(),
    ),
    Wish(InMemory.offline, TellAccountManager(order_id="order-1"), (), rival=None),
    Wish(InMemory.settled, renew_link, (LinkRevoked, LinkIssued), rival=use_link, then=(LinkIssued,)),
    Wish(InMemory.paid, refund(), (PaymentRefunded,), rival=fulfil, then=(PaymentRefunded,)),
    Wish(
        InMemory.refunded,
        reverse,
        (GrantReversed, CapacityWithdrawn),
        rival=create_factory,
        then=(GrantReversed, CapacityWithdrawn),
    ),
    Wish(
        in_which(two_fulfilled, issue_invoice, refund()),
        credit,
        (InvoiceNumberAssigned, CreditNoteIssued),
        rival=InvoiceFulfilledOrder(order_id="order-2"),
        then=(InvoiceNumberAssigned, CreditNoteIssued),
    ),
    Wish(credited, mail_credit, (), rival=None),
    Wish(InMemory.opened, create_factory, (PbxCreated,), rival=but(create_shop, extensions=20), then=(PbxCreated,)),
    Wish(
        InMemory.with_factory,
        allocate,
        (CapacityAllocated,),
        rival=but(allocate, allocation_id="allocation-2"),
        then=PoolExhausted,
    ),
    Wish(InMemory.with_factory, release, (CapacityReleased,), rival=remove, then=UnknownPbx),
    Wish(
        in_which(InMemory.opened, but(create_factory, extensions=20)),
        upgrade,
        (PbxUpgraded,),
        rival=create_lab,
        then=PoolExhausted,
    ),
    Wish(InMemory.with_factory, remove, (PbxRemoved,), rival=create_lab, then=(PbxRemoved,)),
)
"""Every entry of `COMMANDS` except `UseInvoiceLink`, whose point is that it cannot be repeated."""


def named(wish: Wish) -> str:
    return type(wish.message).__name__


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once after a conflict."""
    monkeypatch.setattr(retry_on_conflict, "wait", tenacity.wait_none())


def test_every_entry_is_tested_here() -> None:
    assert {type(wish.message) for wish in WISHES} | {UseInvoiceLink} == set(COMMANDS)


@pytest.mark.parametrize("wish", WISHES, ids=named)
def test_a_request_appends_its_events(store: InMemory, wish: Wish) -> None:
    wish.given(store)
    before = store.head

    outcome = store.ask(wish.message)

    assert tuple(type(event) for event in store.since(before)) == wish.events
    assert [recorded.event for recorded in outcome.context.recorded] == store.since(before)


@pytest.mark.parametrize("wish", WISHES, ids=named)
def test_a_request_is_recorded_with_its_actor_and_cause(store: InMemory, wish: Wish) -> None:
    wish.given(store)
    before, actor = store.head, permitted(wish.message)
    handle(wish.message, store.dependencies, actor, correlation_id="golden-ticket-5", causation_id="chocolate-bar")

    for recorded in store.dependencies.log.read(before, limit=100):
        assert (recorded.cause.actor, recorded.cause.correlation_id) == (str(actor), "golden-ticket-5")
        assert recorded.cause.causation_id == "chocolate-bar"
        assert recorded.account_id == (None if recorded.stream.startswith("price_list") else "acme")


@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.message != renew_link], ids=named)
def test_a_repeated_request_appends_nothing_and_gets_the_same_answer(store: InMemory, wish: Wish) -> None:
    wish.given(store)
    first = store.ask(wish.message)
    before = store.head

    retry_on_conflict = store.ask(wish.message)

    assert store.since(before) == []
    assert retry_on_conflict.answer == first.answer


@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.message != renew_link], ids=named)
def test_a_request_repeated_three_days_later_appends_nothing(store: InMemory, wish: Wish) -> None:
    wish.given(store)
    store.ask(wish.message)
    before = store.head
    store.clock.advance(timedelta(days=3))

    store.ask(wish.message)

    assert store.since(before) == []


@pytest.mark.parametrize("wish", [wish for wish in WISHES if wish.rival], ids=named)
def test_a_request_that_loses_to_another_is_decided_again(store: InMemory, wish: Wish) -> None:
    wish.given(store)
    rival = wish.rival
    assert rival is not None
    store.recorder.rivals.append(lambda: store.ask_elsewhere(rival))

    before = store.head
    refusal: type[Refusal] | None = None
    recorded: tuple[type[Event], ...] = ()
    try:
        recorded = tuple(type(fact.event) for fact in store.ask(wish.message).context.recorded)
    except Refusal as reason:
        refusal = type(reason)

    assert store.recorder.conflicts == 1, f"{type(rival).__name__} caused no conflict"
    assert (refusal or recorded) == wish.then
    assert len(store.since(before)) > len(recorded), "the rival's events were recorded"


def test_a_request_that_always_loses_is_abandoned_and_appends_nothing(store: InMemory) -> None:
    store.opened()
    numbers = iter(range(100))

    def add_another() -> None:
        another = but(add_receiver, receiver_id=f"oompa-{next(numbers)}")
        store.ask(another)
        store.recorder.rivals.append(add_another)

    store.recorder.rivals.append(add_another)
    with pytest.raises(VersionConflict):
        store.ask(add_receiver)

    assert store.recorder.conflicts == 31
    assert "bucket" not in {added.receiver_id for added in store.all(BillingReceiverAdded)}


def test_a_link_renewed_twice_has_two_successors_and_the_last_one_is_valid(store: InMemory) -> None:
    store.settled()
    store.ask(renew_link)
    store.ask(renew_link)

    assert [link.ordinal for link in store.all(LinkIssued)] == [1, 2, 3]
    assert [link.link_id for link in store.all(LinkRevoked)] == [link_of(ordinal=1), link_of(ordinal=2)]


def test_two_renewals_at_once_issue_two_links_and_the_last_one_is_valid(store: InMemory) -> None:
    store.settled()
    store.recorder.rivals.append(lambda: store.ask_elsewhere(renew_link))
    store.ask(renew_link)

    assert store.recorder.conflicts == 1
    assert [link.ordinal for link in store.all(LinkIssued)] == [1, 2, 3]
    assert [link.link_id for link in store.all(LinkRevoked)] == [link_of(ordinal=1), link_of(ordinal=2)]


def test_a_link_is_used_once(store: InMemory) -> None:
    store.settled()
    before = store.head

    document = store.ask(use_link).answer

    assert [type(event) for event in store.since(before)] == [LinkConsumed]
    assert document.sha256 == store.one(InvoiceIssued).document.sha256


def test_a_link_used_again_is_refused_and_that_is_recorded(store: InMemory) -> None:
    store.settled().ask(use_link)
    before = store.head
    with pytest.raises(UnknownLink):
        store.ask(use_link)

    assert [type(event) for event in store.since(before)] == [LinkRefused]


def test_one_of_two_uses_at_once_loses_and_both_are_recorded(store: InMemory) -> None:
    store.settled()
    store.recorder.rivals.append(lambda: store.ask_elsewhere(use_link))
    with pytest.raises(UnknownLink):
        store.ask(use_link)

    assert store.recorder.conflicts == 1
    assert len(store.all(LinkConsumed)) == 1
    assert len(store.all(LinkRefused)) == 1


def test_a_declined_payment_can_be_tried_again(store: InMemory) -> None:
    store.placed(Method.CARD).provider.enter_bad_card()
    store.ask(complete())
    store.provider.approve()
    store.ask(complete())

    assert store.names()[-3:] == ["PaymentDeclined", "PaymentReferenceClaimed", "PaymentCaptured"]


def test_a_decline_that_loses_to_a_cancellation_is_dropped(store: InMemory) -> None:
    store.placed(Method.CARD).provider.enter_bad_card()
    store.recorder.rivals.append(lambda: store.ask_elsewhere(cancel_order))
    with pytest.raises(OrderClosed, match=r"The order is cancelled; no money was taken\."):
        store.ask(complete())

    assert store.recorder.conflicts == 1
    assert store.all(PaymentDeclined) == []
    assert store.provider.captures == {}


def test_money_taken_during_a_cancellation_is_recorded_before_the_answer(
    store: InMemory,
) -> None:
    store.approved()
    store.recorder.rivals.append(lambda: store.ask_elsewhere(cancel_order))
    store.ask(complete())

    assert store.one(PaymentSetAside).capture_id == "capture-1"


# --- refused -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class No:
    """A request that breaks a rule."""

    given: Given
    message: Message
    reason: type[Refusal]
    sentence: str


def free_of_charge(store: InMemory) -> None:
    """A price list with a free custom domain."""
    offers = tuple(but(offer, unit_price_minor=0) if offer.service == "custom_domain" else offer for offer in OFFERS)
    for message in (but(publish, offers=offers), open_account, activate):
        store.ask(message)


def after_the_deadline(store: InMemory) -> None:
    store.ordered()
    store.clock.at = DEADLINE


def after_the_term(store: InMemory) -> None:
    store.opened()
    store.clock.advance(timedelta(days=73))


def in_austria(store: InMemory) -> None:
    for message in (publish, but(open_account, country="AT"), activate):
        store.ask(message)


def in_francs(store: InMemory) -> None:
    for message in (publish, but(open_account, currency="CHF"), activate):
        store.ask(message)


def to_spare(store: InMemory) -> None:
    """A package with its whole capacity free, and a PBX with one unit of High Availability."""
    store.ask(publish)
    store.ask(open_account)
    store.ask(but(activate, quantities={"extensions": 100, "ultimate_plan": 20, "high_availability": 2}))
    store.ask(create_factory)
    store.ask(but(allocate, service="high_availability", quantity=1))


NOWHERE = {"account_id": "nowhere"}
NO_TICKET = "golden-ticket"
NO_ORDER = "There is no order order-1; name one of the account's own orders."
SPENT = "This link is not valid, or was used already; ask for a new one."

NOES = (
    No(
        InMemory.opened,
        but(publish, valid_from=date(2026, 2, 1)),
        PriceListVersionExists,
        "Version 1 of price list YT EUR is already published; publish the new prices as version 2.",
    ),
    No(
        InMemory.opened,
        but(publish, version=3),
        PriceListOutOfOrder,
        "Version 3 would leave a gap; the next version is 2.",
    ),
    No(
        InMemory.opened,
        but(publish, version=2),
        PriceListOutOfOrder,
        "Version 2 is dated 2026-01-01; it must come after version 1, which holds from 2026-01-01.",
    ),
    No(
        nothing,
        but(publish, offers=(*OFFERS, OFFERS[0])),
        PriceListAmbiguous,
        "The service extensions appears twice in the price list; keep one of them.",
    ),
    No(
        nothing,
        but(publish, taxes=(*TAXES, TaxRule(country="DE", rate_bp=7_00))),
        PriceListAmbiguous,
        "The tax rule DE standard appears twice in the price list; keep one of them.",
    ),
    No(
        InMemory.opened,
        but(open_account, name="Slugworth"),
        AccountExists,
        "The account id acme belongs to ACME; choose another id.",
    ),
    No(nothing, add_receiver, UnknownAccount, "There is no account acme; open it first."),
    No(
        InMemory.opened,
        but(add_receiver, receiver_id="wonka"),
        BillingReceiverExists,
        "The id wonka belongs to another contact; change that contact or choose a new id.",
    ),
    No(nothing, change_receiver, UnknownAccount, "There is no account acme; open it first."),
    No(
        InMemory.opened,
        but(change_receiver, receiver_id="nobody"),
        UnknownBillingReceiver,
        "There is no billing receiver nobody; the account has: wonka.",
    ),
    No(nothing, choose_default, UnknownAccount, "There is no account acme; open it first."),
    No(
        InMemory.opened,
        choose_default,
        UnknownBillingReceiver,
        "There is no billing receiver bucket; the account has: wonka.",
    ),
    No(nothing, erase_receiver, UnknownAccount, "There is no account acme; open it first."),
    No(
        InMemory.opened,
        but(erase_receiver, receiver_id="nobody"),
        UnknownBillingReceiver,
        "There is no billing receiver nobody; the account has: wonka.",
    ),
    No(
        in_which(InMemory.ordered, erase_receiver),
        but(bill_to, receiver_id="wonka", contact=None),
        BillingReceiverGone,
        "The billing receiver wonka was erased; choose or add another one.",
    ),
    No(nothing, activate, UnknownAccount, "There is no account acme; open it first."),
    No(
        InMemory.opened,
        but(activate, quantities={"extensions": 1}),
        PackageExists,
        "The package pkg-acme already exists; choose another id.",
    ),
    No(
        without_a_package,
        but(activate, term=Term(starts_on=YEAR.starts_on, ends_on=YEAR.starts_on)),
        PackageNotPossible,
        "A term from 2026-01-01 to 2026-01-01 has no days; choose a later end.",
    ),
    No(
        without_a_package,
        but(activate, quantities={"recording_minutes": 5}),
        PackageNotPossible,
        "A package needs at least one extension; say how many.",
    ),
    No(
        without_a_package,
        but(activate, quantities={"extensions": 10, "ultimate_plan": 11}),
        UltimateExceedsExtensions,
        "11 extensions on the Ultimate Plan are more than the package's 10; "
        "choose at most 10 in all, or add extensions too.",
    ),
    No(InMemory.opened, but(order(), **NOWHERE), UnknownAccount, "There is no account nowhere; open it first."),
    No(
        InMemory.opened,
        but(order(), package_id="pkg-nowhere"),
        UnknownPackage,
        "There is no package pkg-nowhere in account acme; name one of the account's own packages.",
    ),
    No(
        in_francs,
        order(),
        NoPriceList,
        "There is no price list in CHF on 2026-10-20; choose a currency that has one.",
    ),
    No(
        InMemory.opened,
        but(order(), selections=()),
        NothingSelected,
        "The order has no lines; select at least one service.",
    ),
    No(
        after_the_term,
        order(),
        OutsideTheTerm,
        "The package runs from 2026-01-01 to 2027-01-01; it cannot be expanded on 2027-01-01.",
    ),
    No(
        in_austria,
        order(),
        NotSoldThere,
        "Price list YT EUR has no standard tax rate for AT.",
    ),
    No(
        InMemory.opened,
        order(telegraph=1),
        UnknownService,
        "There is no service 'telegraph'; the services are extensions, ultimate_plan, recording_minutes, "
        "high_availability, transcription_minutes, ycm_white_label, pce_white_label, custom_domain.",
    ),
    No(
        InMemory.opened,
        order(extensions=0),
        QuantityNotPossible,
        "0 is not a valid quantity of extensions; use 1 to 1,000,000.",
    ),
    No(
        InMemory.opened,
        order(custom_domain=2),
        QuantityNotPossible,
        "custom_domain has no quantity; select it once, not 2 times.",
    ),
    No(
        InMemory.opened,
        but(order(), selections=(Selection(service="extensions"), Selection(service="extensions"))),
        ServiceSelectedTwice,
        "extensions is selected twice; put the whole quantity into one line.",
    ),
    No(
        InMemory.opened,
        order(ultimate_plan=81),
        UltimateExceedsExtensions,
        "101 extensions on the Ultimate Plan are more than the package's 100; "
        "choose at most 100 in all, or add extensions too.",
    ),
    No(
        InMemory.settled,
        order("order-2", custom_domain=1),
        ServiceAlreadyActive,
        "custom_domain is already active; it cannot be subscribed to twice.",
    ),
    No(
        free_of_charge,
        order(custom_domain=1),
        NothingToPay,
        "The order comes to 0; there is nothing to pay, so nothing can be ordered.",
    ),
    No(
        InMemory.ordered,
        order(extensions=1),
        OrderExists,
        "The order order-1 already exists with other lines; choose a new id.",
    ),
    No(InMemory.opened, bill_to, UnknownOrder, NO_ORDER),
    No(
        InMemory.ordered,
        but(bill_to, contact=None),
        UnknownBillingReceiver,
        "There is no billing receiver oompa; the account has: wonka.",
    ),
    No(
        InMemory.ordered,
        but(bill_to, receiver_id="wonka", contact=BUCKET),
        BillingReceiverExists,
        "The id wonka belongs to another contact; change that contact or choose a new id.",
    ),
    No(
        InMemory.paid,
        bill_to,
        OrderClosed,
        "The order is paid; its billing contact can be chosen until it is paid.",
    ),
    No(
        InMemory.opened,
        check_out(Method.PAYPAL),
        UnknownOrder,
        NO_ORDER,
    ),
    No(
        InMemory.ordered,
        check_out(Method.CARD, pi_number="PI-2026-7"),
        PiNumberNeedsOffline,
        "A PI number is for offline payment only; leave it out for card.",
    ),
    No(
        in_which(InMemory.ordered, cancel_order),
        check_out(Method.PAYPAL),
        OrderClosed,
        "The order is cancelled; request a new one.",
    ),
    No(
        after_the_deadline,
        check_out(Method.PAYPAL),
        OrderClosed,
        "The order expired at 2026-11-03 09:00 UTC; request a new one.",
    ),
    No(
        in_which(InMemory.offline, order("order-2", extensions=1)),
        check_out(Method.OFFLINE, "order-2", "pi-2026-7"),
        PaymentReferenceTaken,
        "The PI number PI-2026-7 was already used for another order; give the number of this payment.",
    ),
    No(InMemory.opened, complete(), UnknownOrder, NO_ORDER),
    No(InMemory.ordered, complete(), OrderClosed, "The order is requested; no money was taken."),
    No(
        in_which(InMemory.approved, cancel_order),
        complete(),
        OrderClosed,
        "The order is cancelled; no money was taken.",
    ),
    No(InMemory.placed, note, UnknownPayment, "The provider knows no such payment."),
    No(InMemory.opened, confirm(), UnknownOrder, NO_ORDER),
    No(
        InMemory.ordered,
        confirm(),
        NotAnOfflineOrder,
        "The order is not to be paid offline; its payment comes from the provider.",
    ),
    No(
        InMemory.placed,
        confirm(),
        NotAnOfflineOrder,
        "The order is not to be paid offline; its payment comes from the provider.",
    ),
    No(InMemory.opened, cancel_order, UnknownOrder, NO_ORDER),
    No(
        InMemory.settled,
        cancel_order,
        OrderClosed,
        "The order is fulfilled and cannot be cancelled; a paid order can be refunded.",
    ),
    No(InMemory.opened, expire, UnknownOrder, NO_ORDER),
    No(
        InMemory.placed,
        but(expire, at=NOW),
        NotYetExpired,
        "The order can be paid until 2026-11-03 09:00 UTC.",
    ),
    No(InMemory.opened, fulfil, UnknownOrder, NO_ORDER),
    No(InMemory.placed, fulfil, NotPaid, "The order is placed; only a paid order can be fulfilled."),
    No(InMemory.opened, issue_invoice, UnknownOrder, NO_ORDER),
    No(InMemory.placed, issue_invoice, NotFulfilled, "The order is placed; it is invoiced once it is fulfilled."),
    No(InMemory.paid, issue_invoice, NotFulfilled, "The order is paid; it is invoiced once it is fulfilled."),
    No(
        fulfilled,
        mail_link,
        UnknownInvoice,
        f"There is no invoice {invoice_of()}; name one that was issued.",
    ),
    No(
        InMemory.settled,
        but(mail_link, link_id=link_of(ordinal=2)),
        UnknownLink,
        f"There is no link {link_of(ordinal=2)}; issue it first.",
    ),
    No(
        InMemory.opened,
        TellAccountManager(order_id="order-1"),
        UnknownOrder,
        NO_ORDER,
    ),
    No(nothing, use_link, UnknownLink, SPENT),
    No(InMemory.settled, UseInvoiceLink(token=NO_TICKET), UnknownLink, SPENT),
    No(InMemory.settled, UseInvoiceLink(token=f"{token_of()[:-1]}!"), UnknownLink, SPENT),
    No(InMemory.settled, UseInvoiceLink(token=token_of()[:22] + token_of("order-2")[22:]), UnknownLink, SPENT),
    No(fulfilled, renew_link, UnknownInvoice, f"There is no invoice {invoice_of()}; name one that was issued."),
    No(
        credited,
        RenewInvoiceLink(invoice_id=mail_credit.credit_note_id),
        UnknownInvoice,
        f"There is no invoice {mail_credit.credit_note_id}; name one that was issued.",
    ),
    No(without_documents, renew_link, NoDocument, GONE),
    No(without_documents, use_link, NoDocument, GONE),
    No(without_documents, mail_credit, NoDocument, GONE.replace("000001", "000002")),
    No(InMemory.opened, refund(), UnknownOrder, NO_ORDER),
    No(InMemory.placed, refund(), NotPaid, "The order is placed; only a payment can be refunded."),
    No(
        InMemory.settled,
        refund(eur(544_66)),
        RefundNotPossible,
        "54466 EUR cannot be refunded; from 1 to 54465 minor units of EUR can.",
    ),
    No(
        InMemory.settled,
        refund(Money(amount_minor=1, currency="CHF")),
        RefundNotPossible,
        "1 CHF cannot be refunded; from 1 to 54465 minor units of EUR can.",
    ),
    No(
        InMemory.settled,
        refund(eur(1), "high_availability"),
        RefundNotPossible,
        "high_availability is not in the order; its services are extensions, ultimate_plan, custom_domain.",
    ),
    No(
        InMemory.refunded,
        refund(refund_id="refund-2"),
        RefundNotPossible,
        "0 EUR cannot be refunded; from 1 to 0 minor units of EUR can.",
    ),
    No(InMemory.opened, reverse, UnknownOrder, NO_ORDER),
    No(InMemory.settled, reverse, UnknownRefund, "There is no refund refund-1; refund the order first."),
    No(InMemory.opened, credit, UnknownOrder, NO_ORDER),
    No(InMemory.settled, credit, UnknownRefund, "There is no refund refund-1; refund the order first."),
    No(
        in_which(fulfilled, refund()),
        credit,
        UnknownInvoice,
        f"There is no invoice {invoice_of()} that a credit note could correct; issue it first.",
    ),
    No(
        InMemory.settled,
        mail_credit,
        UnknownInvoice,
        f"There is no credit note {mail_credit.credit_note_id}; issue it first.",
    ),
    *(
        No(
            InMemory.with_factory,
            but(message, package_id="pkg-nowhere"),
            UnknownPool,
            "There is no package pkg-nowhere in account acme; name one of the account's own packages.",
        )
        for message in (create_shop, allocate, release, upgrade, remove)
    ),
    *(
        No(
            InMemory.with_factory,
            but(message, pbx_id="pbx-nowhere"),
            UnknownPbx,
            "The package has no PBX pbx-nowhere; its PBXs are pbx-factory.",
        )
        for message in (allocate, release, upgrade, remove)
    ),
    No(
        InMemory.with_factory,
        but(create_factory, extensions=1),
        PbxExists,
        "The PBX id pbx-factory is taken; choose another.",
    ),
    No(
        InMemory.opened,
        but(create_factory, extensions=0),
        UnitsNotPossible,
        "0 is not a valid quantity of extensions; use 1 to 1,000,000.",
    ),
    No(
        InMemory.opened,
        but(create_factory, plan=Plan.ULTIMATE),
        PoolExhausted,
        "60 ultimate extensions are more than the 20 left in the pool; expand the package or ask for less.",
    ),
    No(
        InMemory.with_factory,
        but(allocate, quantity=-1),
        UnitsNotPossible,
        "-1 is not a valid quantity of extensions; use 1 to 1,000,000.",
    ),
    No(
        InMemory.with_factory,
        but(allocate, service="ultimate_plan"),
        UltimateNotAllocatable,
        "The Ultimate Plan applies to a whole PBX; upgrade the PBX instead.",
    ),
    No(
        InMemory.with_factory,
        but(allocate, service="high_availability"),
        ServiceNotForPbxs,
        "The pool has no high_availability; it has extensions, ultimate_plan.",
    ),
    No(
        to_spare,
        but(allocate, allocation_id="allocation-2", service="high_availability", quantity=1),
        AlreadyHighlyAvailable,
        "The PBX pbx-factory takes at most one unit of High Availability.",
    ),
    No(
        InMemory.with_factory,
        but(allocate, quantity=21),
        PoolExhausted,
        "21 enterprise extensions are more than the 20 left in the pool; expand the package or ask for less.",
    ),
    No(
        InMemory.with_factory,
        but(release, quantity=0),
        UnitsNotPossible,
        "0 is not a valid quantity of extensions; use 1 to 1,000,000.",
    ),
    No(
        InMemory.with_factory,
        but(release, service="recording_minutes"),
        NotReleasable,
        "Recording minutes that are assigned to a PBX cannot be released.",
    ),
    No(
        InMemory.with_factory,
        but(release, quantity=60),
        NotReleasable,
        "The PBX pbx-factory holds 60 extensions and can release at most 59.",
    ),
    No(
        InMemory.with_factory,
        upgrade,
        PoolExhausted,
        "The PBX pbx-factory has 60 extensions, but only 20 of the Ultimate Plan are left; subscribe to more first.",
    ),
)


def called(case: No) -> str:
    return f"{type(case.message).__name__}-{case.reason.__name__}"


def test_every_entry_has_a_refusal_here() -> None:
    assert {type(case.message) for case in NOES} == set(COMMANDS)


@pytest.mark.parametrize("case", NOES, ids=called)
def test_a_refusal_says_why_and_writes_nothing(store: InMemory, case: No) -> None:
    case.given(store)
    before = store.head

    actor = PORTAL if getattr(case.message, "account_id", None) == "nowhere" else None
    with pytest.raises(Refusal) as refused:
        store.ask(case.message, actor)

    assert (type(refused.value), str(refused.value)) == (case.reason, case.sentence)
    assert store.head == before


def test_an_unapproved_checkout_takes_no_money_and_writes_nothing(store: InMemory) -> None:
    store.placed()
    before = store.head
    with pytest.raises(PaymentNotApproved):
        store.ask(complete())

    assert store.head == before


@pytest.mark.parametrize("spent", [use_link, renew_link], ids=["used", "revoked"])
def test_a_spent_link_gets_the_same_answer_as_an_unknown_one_and_is_recorded_with_its_reason(
    store: InMemory, spent: Message
) -> None:
    store.settled().ask(spent)
    with pytest.raises(UnknownLink, match=SPENT):
        store.ask(use_link)

    assert store.one(LinkRefused).reason == ("used" if spent is use_link else "revoked")


def test_a_link_expires_after_24_hours_to_the_second(store: InMemory) -> None:
    store.settled()
    store.clock.advance(timedelta(hours=24))
    with pytest.raises(UnknownLink, match=SPENT):
        store.ask(use_link)
    assert store.one(LinkRefused).reason == "expired"

    store.clock.advance(timedelta(seconds=-1))
    assert store.ask(use_link).answer.content.startswith(b"%PDF")


# --- permissions ---------------------------------------------------------------------------------------------------

EXAMPLES: dict[type[Message], Message] = {type(wish.message): wish.message for wish in WISHES} | {
    UseInvoiceLink: use_link
}


@pytest.mark.parametrize(
    ("message", "role"),
    [(EXAMPLES[kind], role) for kind, entry in COMMANDS.items() for role in Role if role not in entry.roles],
    ids=lambda value: value if isinstance(value, Role) else type(value).__name__,
)
def test_a_role_that_is_not_listed_may_not_ask(store: InMemory, message: Message, role: Role) -> None:
    store.settled()
    before = store.head

    with pytest.raises(NotPermitted, match=f"{role}:{ACTORS[role].name} may not ask for {type(message).__name__}"):
        store.ask(message, ACTORS[role])

    assert store.head == before


@pytest.mark.parametrize("kind", [kind for kind, entry in COMMANDS.items() if Role.PARTNER in entry.roles])
def test_a_partner_asks_for_its_own_account_only_and_learns_nothing_of_others(
    store: InMemory, kind: type[Message]
) -> None:
    store.settled()
    before = store.head
    sentences = set()
    for account_id in ("acme", "nowhere"):
        with pytest.raises(NotPermitted) as refused:
            store.ask(but(EXAMPLES[kind], account_id=account_id), ARTHUR)
        sentences.add(str(refused.value))

    assert len(sentences) == 1
    assert store.head == before


def test_a_partner_without_an_account_asks_for_nothing(store: InMemory) -> None:
    store.opened()
    with pytest.raises(NotPermitted):
        store.ask(order(), Actor(Role.PARTNER, "nobody"))


@dataclass(frozen=True)
class Foreign:
    """Arthur of Slugworth names something that belongs to ACME."""

    message: Message
    what: str
    unknown: str = "unknown"


SLUGWORTH = {"account_id": "slugworth"}
FOREIGN = (
    Foreign(but(order("order-2", extensions=1), **SLUGWORTH), "package_id"),
    Foreign(but(bill_to, **SLUGWORTH), "order_id"),
    Foreign(but(check_out(Method.CARD), **SLUGWORTH), "order_id"),
    Foreign(but(complete(), **SLUGWORTH), "order_id"),
    Foreign(but(cancel_order, **SLUGWORTH), "order_id"),
    Foreign(but(create_shop, **SLUGWORTH), "package_id"),
    Foreign(but(allocate, **SLUGWORTH), "package_id"),
    Foreign(but(release, **SLUGWORTH), "package_id"),
    Foreign(but(upgrade, **SLUGWORTH), "package_id"),
    Foreign(but(remove, **SLUGWORTH), "package_id"),
    Foreign(but(change_receiver, receiver_id="wonka", **SLUGWORTH), "receiver_id"),
    Foreign(but(choose_default, receiver_id="wonka", **SLUGWORTH), "receiver_id"),
)


def test_every_partner_request_that_names_something_has_a_foreign_case() -> None:
    partners = {kind for kind, entry in COMMANDS.items() if Role.PARTNER in entry.roles}
    assert {type(case.message) for case in FOREIGN} == partners - {AddBillingReceiver}


@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: type(case.message).__name__)
@pytest.mark.parametrize("stage", [InMemory.approved, InMemory.settled], ids=["open", "fulfilled"])
def test_a_foreign_thing_is_as_unknown_as_a_missing_one(store: InMemory, case: Foreign, stage: Given) -> None:
    stage(store)
    store.ask(create_factory)
    store.ask(but(open_account, account_id="slugworth", name="Slugworth", receiver_id="fickel"))
    before, mine = store.head, str(getattr(case.message, case.what))

    answers = []
    for name in (mine, case.unknown):
        with pytest.raises(Refusal) as refused:
            store.ask(but(case.message, **{case.what: name}), ARTHUR)
        answers.append((type(refused.value), str(refused.value).replace(name, "...")))

    assert answers[0] == answers[1]
    assert store.head == before
    assert len(store.provider.captures) == len(store.all(PaymentCaptured))


def test_another_accounts_checkout_is_not_revealed_and_its_money_is_recorded_for_its_own_order(
    store: InMemory,
) -> None:
    """The provider captures what its customer approved, whoever asks; the answer must not reveal it to a stranger."""
    store.approved()
    slugworth(store)

    with pytest.raises(UnknownPayment, match=r"The provider knows no such payment of this order\."):
        store.ask(but(complete("checkout-1", "order-2"), **SLUGWORTH), ARTHUR)

    assert store.one(PaymentCaptured).order_id == "order-1"


def slugworth(store: InMemory) -> None:
    """Slugworth also has a package and a placed order."""
    store.ask(but(open_account, account_id="slugworth", name="Slugworth", receiver_id="fickel"))
    store.ask(but(activate, package_id="pkg-slug", account_id="slugworth"))
    store.ask(but(order("order-2", extensions=1), account_id="slugworth", package_id="pkg-slug"), ARTHUR)
    store.ask(but(check_out(Method.PAYPAL, "order-2"), account_id="slugworth"), ARTHUR)


# --- the table -----------------------------------------------------------------------------------------------------

INTERNAL = {
    # decided when their bytes are deleted, which no request can do
    DeleteDocument,
    # decided while a request is handled, which knows their content
    RequestExpansion,
    ChooseBillingContact,
    PlaceOrder,
    CapturePayment,
    SetPaymentAside,
    DeclinePayment,
    FulfilOrder,
    RefundPayment,
    ClaimPaymentReference,
    ExpandPackage,
    ReverseGrant,
    GrantCapacity,
    WithdrawCapacity,
    AssignInvoiceNumber,
    IssueInvoice,
    RecordInvoiceEmailed,
    IssueCreditNote,
    IssueLink,
    ConsumeLink,
    RevokeLink,
}
ASKED = {
    # domain commands that need only the time, so callers send them as they are
    CancelOrder,
    PublishPriceList,
    OpenAccount,
    AddBillingReceiver,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    EraseBillingReceiver,
    ActivatePackage,
    ExpireOrder,
    CreatePbx,
    AllocateCapacity,
    ReleaseCapacity,
    UpgradePbx,
    RemovePbx,
}


def test_every_request_can_be_asked_for() -> None:
    assert {kind for kind in COMMANDS if issubclass(kind, Request)} == set(Request.__subclasses__())


def test_every_domain_command_is_asked_for_or_internal() -> None:
    assert {kind for kind in COMMANDS if issubclass(kind, Command)} == ASKED
    assert set(Command.__subclasses__()) == ASKED | INTERNAL
    assert not ASKED & INTERNAL


def test_nobody_can_ask_for_an_internal_command(store: InMemory) -> None:
    for kind in INTERNAL:
        assert kind not in COMMANDS


def test_only_the_system_may_send_the_commands_of_reactions(store: InMemory) -> None:
    ours = {kind for kind, entry in COMMANDS.items() if entry.roles == {Role.SYSTEM}}
    assert ours == {
        ReconcileCapture,
        ExpireOrder,
        FulfilPaidOrder,
        InvoiceFulfilledOrder,
        MailInvoiceLink,
        TellAccountManager,
        UseInvoiceLink,
        ReverseRefundedGrant,
        IssueCreditNoteForRefund,
        MailCreditNote,
    }


def test_neither_customer_nor_system_confirms_money_collected_by_hand() -> None:
    assert COMMANDS[type(confirm())].roles == {Role.DISTRIBUTOR, Role.ACCOUNT_MANAGER}
