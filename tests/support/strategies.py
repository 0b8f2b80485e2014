"""Hypothesis strategies: commands of every aggregate, with few enough ids and moments that they collide.

A sequence begins with some steps of the aggregate's story, so that late states are reached too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from domain.account import (
    ACCOUNT,
    AddBillingReceiver,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    EraseBillingReceiver,
    OpenAccount,
)
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
from domain.invoice import INVOICE, DeleteDocument, IssueCreditNote, IssueInvoice, RecordInvoiceEmailed
from domain.invoice_link import INVOICE_LINK, ConsumeLink, IssueLink, RevokeLink
from domain.invoice_series import INVOICE_SERIES, AssignInvoiceNumber
from domain.messages import Command, Decider
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
from domain.payment_reference import PAYMENT_REFERENCE, ClaimPaymentReference
from domain.price_list import PRICE_LIST, PriceList, PublishPriceList, TaxRule
from domain.quote import Quote, Selection, Term, quote
from domain.services import Plan
from domain.subscription import SUBSCRIPTION, ActivatePackage, ExpandPackage, ReverseGrant
from tests.support import examples as an
from tests.support.given_domain import M, but

SERVICES = [offer.service for offer in an.OFFERS]
MOMENTS = st.sampled_from(
    [an.NOW, an.LATER, an.DEADLINE - timedelta(microseconds=1), an.DEADLINE, an.DEADLINE + timedelta(days=1)]
)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=9).filter(str.strip)
CONTACTS = st.sampled_from([an.WONKA, an.BUCKET, but(an.WONKA, vat_id=None, address=())])
UNITS = st.integers(-1, 30) | st.sampled_from([30, 500, 501, 1_000_000, 1_000_001])


def ids(word: str, n: int = 3) -> SearchStrategy[str]:
    """A few ids."""
    return st.sampled_from([f"{word}-{i}" for i in range(1, n + 1)])


def varied(example: M, **fields: SearchStrategy[Any]) -> SearchStrategy[M]:
    """An example with some fields drawn at random."""
    return st.fixed_dictionaries(fields).map(lambda drawn: but(example, **drawn))


def quantities(*services: str, most: int = 60) -> SearchStrategy[dict[str, int]]:
    """Units of some of the services."""
    return st.fixed_dictionaries({}, optional={service: st.integers(1, most) for service in services})


# --- quotes --------------------------------------------------------------------------------------------------------

DAYS = st.dates(an.YEAR.starts_on, an.YEAR.ends_on - timedelta(days=1))


@st.composite
def quotes(draw: st.DrawFn, *services: str, most: int = 60) -> Quote:
    """An order summary of the examples' price list."""
    flat = {offer.service for offer in an.OFFERS if offer.pricing is an.FLAT}
    selected = st.lists(st.sampled_from(services or SERVICES), min_size=1, max_size=4, unique=True)
    return an.quoted(**{service: 1 if service in flat else draw(st.integers(1, most)) for service in draw(selected)})


@st.composite
def any_quotes(draw: st.DrawFn) -> Quote:
    """An order summary at any prices, tax rates and days."""
    offers = [
        an.offer(service, "unit", draw(st.integers(1, 10**6) | st.integers(1, 4)), one_time=draw(st.booleans()))
        for service in ("extensions", "recording_minutes", "custom_domain")
    ]
    rates = st.integers(0, 10_000) | st.just(0)
    taxes = (
        TaxRule(country="DE", rate_bp=draw(rates)),
        TaxRule(country="DE", tax_class="reduced", rate_bp=draw(rates)),
    )
    prices = PriceList(versions=(but(an.published, offers=tuple(offers), taxes=taxes),))
    chosen = draw(st.lists(st.sampled_from([offer.service for offer in offers]), min_size=1, unique=True))
    return quote(
        prices,
        currency="EUR",
        country="DE",
        term=an.YEAR,
        on=draw(DAYS),
        selections=[
            Selection(service=service, quantity=draw(st.integers(1, 1_000) | st.just(1))) for service in chosen
        ],
    )


# --- aggregates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aggregate:
    """One kind of aggregate: its decider, a story of its life, and strategies for its commands."""

    decider: Decider[Any, Any, Any]
    story: tuple[Command, ...]
    commands: Mapping[type[Command], SearchStrategy[Command]]

    def sequences(self, most: int = 12) -> SearchStrategy[list[Command]]:
        """The whole story or some of its steps, then anything."""
        begun = st.sampled_from([self.story[:steps] for steps in range(len(self.story), -1, -1)])
        anything = st.one_of(*self.commands.values())
        wild = st.lists(anything, max_size=most) | st.lists(anything, min_size=most // 2, max_size=most)
        return st.tuples(begun, wild).map(lambda parts: [*parts[0], *parts[1]])


RECEIVERS = ids("receiver", 2)

account = Aggregate(
    ACCOUNT,
    (an.open_account, an.add_receiver),
    {
        OpenAccount: varied(an.open_account, name=st.just("ACME") | TEXTS, receiver_id=RECEIVERS, contact=CONTACTS),
        AddBillingReceiver: varied(an.add_receiver, receiver_id=RECEIVERS, contact=CONTACTS),
        ChangeBillingReceiver: varied(an.change_receiver, receiver_id=RECEIVERS, contact=CONTACTS),
        ChooseDefaultBillingReceiver: varied(an.choose_default, receiver_id=RECEIVERS),
        EraseBillingReceiver: varied(an.erase_receiver, receiver_id=RECEIVERS),
    },
)

price_list = Aggregate(
    PRICE_LIST,
    (an.publish, but(an.publish, version=2, valid_from=date(2026, 7, 1))),
    {
        PublishPriceList: varied(
            an.publish,
            version=st.integers(1, 4),
            valid_from=st.sampled_from([date(2026, 1, 1), date(2026, 7, 1), date(2027, 1, 1), date(2028, 1, 1)]),
            offers=st.lists(st.sampled_from(an.OFFERS), min_size=1, max_size=3).map(tuple),
            taxes=st.lists(st.sampled_from(an.TAXES), min_size=1, max_size=3).map(tuple),
        )
    },
)

ORDERS = ids("order", 4)

CARVED = quotes("extensions", "ultimate_plan", most=200)

subscription = Aggregate(
    SUBSCRIPTION,
    (
        an.activate,
        an.expand,
        but(an.expand, order_id="order-2", lines=an.lines(extensions=9, ultimate_plan=99)),
        but(an.reverse, services=("extensions",)),
    ),
    {
        ActivatePackage: varied(
            an.activate,
            term=st.sampled_from([an.YEAR, Term(starts_on=an.TODAY, ends_on=an.TODAY)]),
            quantities=quantities("extensions", "ultimate_plan", "recording_minutes"),
        ),
        ExpandPackage: varied(an.expand, order_id=ORDERS, lines=(CARVED | quotes()).map(lambda quote: quote.lines)),
        ReverseGrant: varied(
            an.reverse, order_id=ORDERS, services=st.lists(st.sampled_from(SERVICES), max_size=4).map(tuple)
        ),
    },
)

PBXS = st.sampled_from(["pbx-factory", "pbx-shop", "pbx-3"])
POOLED = st.sampled_from(
    ["extensions", "extensions", "recording_minutes", "high_availability", "ultimate_plan", "moons"]
)
CAPACITY = quantities("extensions", "ultimate_plan", "recording_minutes", "high_availability", "transcription_minutes")

allocation = Aggregate(
    ALLOCATION,
    (
        an.grant,
        but(an.grant, grant_id="order-1", quantities={"ultimate_plan": 60, "extensions": 90}),
        an.create_factory,
        an.create_shop,
        an.allocate,
        an.release,
    ),
    {
        GrantCapacity: varied(an.grant, grant_id=ids("id", 4), quantities=CAPACITY),
        WithdrawCapacity: varied(an.withdraw, withdrawal_id=ids("id", 4), quantities=CAPACITY),
        CreatePbx: varied(an.create_factory, pbx_id=PBXS, plan=st.sampled_from(Plan), extensions=UNITS),
        AllocateCapacity: varied(an.allocate, pbx_id=PBXS, allocation_id=ids("id", 6), service=POOLED, quantity=UNITS),
        ReleaseCapacity: varied(an.release, pbx_id=PBXS, release_id=ids("id", 6), service=POOLED, quantity=UNITS),
        UpgradePbx: varied(an.upgrade, pbx_id=PBXS, account_id=st.sampled_from(["acme", "acme", "slugworth"])),
        RemovePbx: varied(an.remove, pbx_id=PBXS),
    },
)

AMOUNTS = st.sampled_from(
    [an.eur(544_65), an.eur(200_00), an.eur(344_65), an.eur(0), Money(amount_minor=544_65, currency="USD")]
)

order = Aggregate(
    ORDER,
    (an.request, an.choose_contact, an.place, an.capture, an.fulfil, but(an.refund, amount=an.eur(200_00))),
    {
        RequestExpansion: varied(an.request, quote=st.just(an.ORDERED) | quotes()),
        ChooseBillingContact: varied(an.choose_contact, receiver_id=RECEIVERS, contact=CONTACTS),
        PlaceOrder: varied(
            an.place, at=MOMENTS, method=st.sampled_from(Method), pi_number=st.sampled_from([None, None, "pi-2026-7"])
        ),
        CapturePayment: varied(
            an.capture, at=MOMENTS, captured_at=MOMENTS, capture_id=ids("capture", 2), amount=AMOUNTS
        ),
        SetPaymentAside: varied(an.set_aside, explanation=st.text(max_size=9)),
        DeclinePayment: varied(an.decline, attempt_id=ids("attempt", 2), reason=TEXTS),
        FulfilOrder: st.just(an.fulfil),
        CancelOrder: varied(an.cancel, reason=TEXTS),
        ExpireOrder: varied(an.expire, at=MOMENTS),
        RefundPayment: varied(
            an.refund,
            refund_id=ids("refund"),
            amount=AMOUNTS,
            services=st.lists(st.sampled_from(["extensions", "custom_domain", "moons"]), max_size=2).map(tuple),
        ),
    },
)

payment_reference = Aggregate(
    PAYMENT_REFERENCE,
    (an.claim,),
    {
        ClaimPaymentReference: varied(
            an.claim, reference=st.sampled_from(["pi:YT:7", "paypal:7"]) | st.text(max_size=9), order_id=ids("order", 2)
        )
    },
)

DOCUMENTS = ids("invoice")

invoice_series = Aggregate(
    INVOICE_SERIES, (an.assign,), {AssignInvoiceNumber: varied(an.assign, document_id=DOCUMENTS)}
)

invoice = Aggregate(
    INVOICE,
    (an.issue_invoice,),
    {
        IssueInvoice: varied(an.issue_invoice, number=TEXTS, quote=quotes(), buyer=CONTACTS),
        RecordInvoiceEmailed: varied(an.record_emailed, link_id=ids("link", 2), message_id=st.text(max_size=9)),
        IssueCreditNote: varied(an.issue_credit_note, number=TEXTS, net=AMOUNTS),
        DeleteDocument: varied(an.delete_document, kept_years=st.integers(7, 9)),
    },
)

TOKENS = st.sampled_from([an.consume.token_sha256, an.consume.token_sha256, "b0b" + 61 * "0"]) | st.text(max_size=9)

invoice_link = Aggregate(
    INVOICE_LINK,
    (an.issue_link, an.consume),
    {
        IssueLink: varied(an.issue_link, ordinal=st.integers(1, 3), token_sha256=TOKENS),
        ConsumeLink: varied(an.consume, at=MOMENTS, token_sha256=TOKENS),
        RevokeLink: varied(an.revoke, at=MOMENTS),
    },
)

AGGREGATES = {
    aggregate.decider.category: aggregate
    for aggregate in (
        account,
        price_list,
        subscription,
        allocation,
        order,
        payment_reference,
        invoice_series,
        invoice,
        invoice_link,
    )
}
