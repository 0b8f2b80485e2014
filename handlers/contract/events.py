"""The messages of events: for each stored event, what of it leaves the house.

These models are a contract, and change by its rules: fields are added, and nothing else (`handlers.contract.changes`
holds that). They carry no personal data and no text that a person wrote; who may see these asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.account import (
    AccountOpened,
    BillingReceiverAdded,
    BillingReceiverChanged,
    BillingReceiverErased,
    DefaultBillingReceiverChosen,
)
from domain.allocation import (
    CapacityAllocated,
    CapacityGranted,
    CapacityReleased,
    CapacityWithdrawn,
    PbxCreated,
    PbxRemoved,
    PbxUpgraded,
)
from domain.invoice import CreditNoteIssued, DocumentDeleted, InvoiceEmailed, InvoiceIssued
from domain.invoice_link import LinkConsumed, LinkIssued, LinkRefused, LinkRevoked, RefusalReason
from domain.invoice_series import InvoiceNumberAssigned
from domain.messages import Event
from domain.order import (
    AsideReason,
    BillingContactChosen,
    ExpansionRequested,
    Method,
    OrderCancelled,
    OrderExpired,
    OrderFulfilled,
    OrderPlaced,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentSetAside,
)
from domain.payment_reference import PaymentReferenceClaimed
from domain.price_list import PriceListPublished
from domain.services import Plan, Pricing
from domain.subscription import CapacityExpanded, GrantReversed, PackageActivated, ServiceSubscribed
from infra.broker.cloudevents import CloudEvent
from infra.broker.nats import subject_of
from infra.recorded import Recorded

Quantities = Annotated[dict[str, int], Field(description="Units by the code of a service.")]


def _one_of(values: Any, what: str) -> Any:  # noqa: ANN401 - a field of any enumeration
    """A word out of a list that may grow: who reads it has to bear with words that are new."""
    return Field(description=f"{what} New words may come.", examples=[str(value) for value in values])


class Data(BaseModel):
    """What a message says; unknown fields are to be passed over by whoever reads it."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


# --- values --------------------------------------------------------------------------------------------------------


class MoneyData(Data):
    """An amount in whole minor units of an ISO 4217 currency."""

    amount_minor: int
    currency: str


class TermData(Data):
    """The days of a package, by UTC dates: from ``starts_on`` up to, and without, ``ends_on``."""

    starts_on: date
    ends_on: date


class OfferData(Data):
    """One line of a price list; the price is that of one unit for a full term."""

    service: str
    title: str
    unit: str
    pricing: str = _one_of(Pricing, "How it is sold.")
    to_pbxs: bool
    one_time: bool
    unit_price_minor: int
    tax_class: str


class TaxRuleData(Data):
    """What a customer of a country pays on a tax class; ``rate_bp`` in hundredths of a percent."""

    country: str
    tax_class: str
    category: str
    rate_bp: int
    note: str


class LineData(Data):
    """One service of an order, with every figure that it was priced by."""

    service: str
    title: str
    unit: str
    pricing: str = _one_of(Pricing, "How it is sold.")
    to_pbxs: bool
    one_time: bool
    quantity: int
    unit_price_minor: int
    days_remaining: int
    days_of_term: int
    amount_minor: int
    tax_category: str
    tax_rate_bp: int


class TaxTotalData(Data):
    """The tax of one rate (EN 16931): rounded once, over the sum of its lines."""

    category: str
    rate_bp: int
    note: str
    net_minor: int
    tax_minor: int


class QuoteData(Data):
    """The order summary: what was ordered, and what it costs."""

    seller: str
    currency: str
    price_list_version: int
    priced_on: date
    term: TermData
    lines: tuple[LineData, ...]
    taxes: tuple[TaxTotalData, ...]
    net: MoneyData
    tax: MoneyData
    total: MoneyData


class DocumentData(Data):
    """The evidence: what its bytes hash to. The bytes themselves are asked for."""

    sha256: str
    media_type: str
    size_bytes: int


# --- accounts and prices -------------------------------------------------------------------------------------------


class AccountOpenedData(Data):
    """A company became a partner of the seller."""

    account_id: str
    seller: str
    currency: str
    country: str


class BillingReceiverData(Data):
    """A billing receiver of an account, by its id: whoever may know its details asks for them."""

    account_id: str
    receiver_id: str


class PriceListPublishedData(Data):
    """From ``valid_from`` on, these are the prices, until a later version takes over."""

    seller: str
    currency: str
    version: int
    valid_from: date
    offers: tuple[OfferData, ...]
    taxes: tuple[TaxRuleData, ...]


# --- packages and their pools --------------------------------------------------------------------------------------


class PackageActivatedData(Data):
    """A hosting package began, with its first capacity."""

    package_id: str
    account_id: str
    term: TermData
    quantities: Quantities


class CapacityExpandedData(Data):
    """A paid order added units of a service to the package."""

    package_id: str
    order_id: str
    service: str
    quantity: int


class ServiceSubscribedData(Data):
    """A paid order switched a flat service on."""

    package_id: str
    order_id: str
    service: str


class GrantReversedData(Data):
    """What an order had given was taken back, after its refund."""

    package_id: str
    order_id: str
    withdrawn: Quantities
    switched_off: tuple[str, ...]


class CapacityGrantedData(Data):
    """The pool grew: by the package's activation, or by an order (``grant_id`` is the one's or the other's id)."""

    package_id: str
    account_id: str
    grant_id: str
    quantities: Quantities


class CapacityWithdrawnData(Data):
    """The pool shrank by a refund. What PBXs hold stays with them, so the pool may be over-allocated now."""

    package_id: str
    withdrawal_id: str
    quantities: Quantities


class PbxCreatedData(Data):
    """A PBX was created with extensions out of the share of its plan."""

    package_id: str
    pbx_id: str
    plan: str = _one_of(Plan, "The plan that all its extensions are on.")
    extensions: int


class CapacityAllocatedData(Data):
    """A PBX was given more of a service; ``drawn`` of it came out of the pool, the rest is free with every PBX."""

    package_id: str
    pbx_id: str
    allocation_id: str
    plan: str = _one_of(Plan, "The plan of the PBX.")
    service: str
    quantity: int
    drawn: int


class CapacityReleasedData(Data):
    """A PBX gave units of a service back to the pool."""

    package_id: str
    pbx_id: str
    release_id: str
    plan: str = _one_of(Plan, "The plan of the PBX.")
    service: str
    quantity: int


class PbxUpgradedData(Data):
    """A PBX went from Enterprise to Ultimate; its extensions moved from the one share to the other."""

    package_id: str
    pbx_id: str
    extensions: int


class PbxRemovedData(Data):
    """A PBX is gone; what it had drawn is in the pool again."""

    package_id: str
    pbx_id: str
    plan: str = _one_of(Plan, "The plan that it was on.")
    released: Quantities


# --- orders and payments -------------------------------------------------------------------------------------------


class ExpansionRequestedData(Data):
    """A customer wants more capacity or new services for a package, at the price that was shown."""

    order_id: str
    account_id: str
    package_id: str
    quote: QuoteData
    requested_at: AwareDatetime
    expires_at: AwareDatetime


class BillingContactChosenData(Data):
    """It is known who will get the invoice."""

    order_id: str
    receiver_id: str


class OrderPlacedData(Data):
    """The customer ordered, and chose how to pay."""

    order_id: str
    method: str = _one_of(Method, "How it is to be paid.")
    pi_number: str | None = Field(None, description="The number of the proforma invoice, where it has one.")
    placed_at: AwareDatetime


class PaymentCapturedData(Data):
    """The customer's money for this order is ours."""

    order_id: str
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    amount: MoneyData
    captured_at: AwareDatetime


class PaymentDeclinedData(Data):
    """The provider said no. The customer may try again."""

    order_id: str
    method: str = _one_of(Method, "How it was to be paid.")
    attempt_id: str
    declined_at: AwareDatetime


class PaymentSetAsideData(Data):
    """Money arrived that fulfils nothing by itself; a person decides what becomes of it."""

    order_id: str
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    amount: MoneyData
    reason: str = _one_of(AsideReason, "Why it fulfils nothing.")
    captured_at: AwareDatetime


class OrderFulfilledData(Data):
    """The package has what was paid for."""

    order_id: str
    fulfilled_at: AwareDatetime


class OrderCancelledData(Data):
    """The order was given up before it was paid."""

    order_id: str
    cancelled_at: AwareDatetime


class OrderExpiredData(Data):
    """Nobody paid in time."""

    order_id: str
    expired_at: AwareDatetime


class PaymentRefundedData(Data):
    """Money of this order went back to the customer; ``services`` are those whose grant is to be reversed."""

    order_id: str
    refund_id: str
    capture_id: str
    amount: MoneyData
    services: tuple[str, ...]
    refunded_at: AwareDatetime


class PaymentReferenceClaimedData(Data):
    """A payment's own number belongs to this order from now on."""

    reference: str
    order_id: str


# --- invoices and their links --------------------------------------------------------------------------------------


class InvoiceNumberAssignedData(Data):
    """The next number of the series belongs to this document."""

    seller: str
    year: int
    sequence: int
    number: str
    document_id: str


class InvoiceIssuedData(Data):
    """An order was invoiced; the amounts are those of the invoice. Whom it names is not told here."""

    invoice_id: str
    number: str
    account_id: str
    order_id: str
    package_id: str
    quote: QuoteData
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    pi_number: str | None = Field(None, description="The number of the proforma invoice, where it has one.")
    paid_at: AwareDatetime
    issued_at: AwareDatetime
    document: DocumentData


class InvoiceEmailedData(Data):
    """A mail server took the mail with the link."""

    invoice_id: str
    link_id: str
    emailed_at: AwareDatetime


class CreditNoteIssuedData(Data):
    """Part, or the whole, of an invoice was given back; the amounts are what went back, so they are positive."""

    credit_note_id: str
    number: str
    invoice_id: str
    invoice_number: str
    account_id: str
    order_id: str
    refund_id: str
    net: MoneyData
    taxes: tuple[TaxTotalData, ...]
    total: MoneyData
    refunded_at: AwareDatetime
    issued_at: AwareDatetime
    document: DocumentData


class DocumentDeletedData(Data):
    """The document of an invoice, or a credit note, had to be kept no longer, and its bytes were deleted."""

    invoice_id: str
    sha256: str
    deleted_at: AwareDatetime


class LinkIssuedData(Data):
    """A link to an invoice exists. What opens it is known to the recipient alone."""

    link_id: str
    invoice_id: str
    order_id: str
    ordinal: int
    expires_at: AwareDatetime


class LinkConsumedData(Data):
    """Somebody with the link was given the invoice."""

    link_id: str
    consumed_at: AwareDatetime


class LinkRefusedData(Data):
    """Somebody came with the link and was given nothing."""

    link_id: str
    reason: str = _one_of(RefusalReason, "Why.")
    refused_at: AwareDatetime


class LinkRevokedData(Data):
    """A newer link took this one's place."""

    link_id: str
    replaced_by: str | None = Field(None, description="The newer link; absent where it was not recorded.")
    revoked_at: AwareDatetime


# --- which event leads to which message ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """What leaves the house of a stored event: the model, and how it is made of the event.

    Most models take the event's fields of the same names. Where a stored event changes its shape, what is made of it
    stays as it was, by a function of its own here.
    """

    data: type[Data]
    made_of: Callable[[Any], Data]


def _fields_of(data: type[Data]) -> Published:
    return Published(data, data.model_validate)


EVENTS: Mapping[type[Event], Published] = {
    AccountOpened: _fields_of(AccountOpenedData),
    BillingReceiverAdded: _fields_of(BillingReceiverData),
    BillingReceiverChanged: _fields_of(BillingReceiverData),
    DefaultBillingReceiverChosen: _fields_of(BillingReceiverData),
    BillingReceiverErased: _fields_of(BillingReceiverData),
    PriceListPublished: _fields_of(PriceListPublishedData),
    PackageActivated: _fields_of(PackageActivatedData),
    CapacityExpanded: _fields_of(CapacityExpandedData),
    ServiceSubscribed: _fields_of(ServiceSubscribedData),
    GrantReversed: _fields_of(GrantReversedData),
    CapacityGranted: _fields_of(CapacityGrantedData),
    CapacityWithdrawn: _fields_of(CapacityWithdrawnData),
    PbxCreated: _fields_of(PbxCreatedData),
    CapacityAllocated: _fields_of(CapacityAllocatedData),
    CapacityReleased: _fields_of(CapacityReleasedData),
    PbxUpgraded: _fields_of(PbxUpgradedData),
    PbxRemoved: _fields_of(PbxRemovedData),
    ExpansionRequested: _fields_of(ExpansionRequestedData),
    BillingContactChosen: _fields_of(BillingContactChosenData),
    OrderPlaced: _fields_of(OrderPlacedData),
    PaymentCaptured: _fields_of(PaymentCapturedData),
    PaymentDeclined: _fields_of(PaymentDeclinedData),
    PaymentSetAside: _fields_of(PaymentSetAsideData),
    OrderFulfilled: _fields_of(OrderFulfilledData),
    OrderCancelled: _fields_of(OrderCancelledData),
    OrderExpired: _fields_of(OrderExpiredData),
    PaymentRefunded: _fields_of(PaymentRefundedData),
    PaymentReferenceClaimed: _fields_of(PaymentReferenceClaimedData),
    InvoiceNumberAssigned: _fields_of(InvoiceNumberAssignedData),
    InvoiceIssued: _fields_of(InvoiceIssuedData),
    InvoiceEmailed: _fields_of(InvoiceEmailedData),
    CreditNoteIssued: _fields_of(CreditNoteIssuedData),
    DocumentDeleted: _fields_of(DocumentDeletedData),
    LinkIssued: _fields_of(LinkIssuedData),
    LinkConsumed: _fields_of(LinkConsumedData),
    LinkRefused: _fields_of(LinkRefusedData),
    LinkRevoked: _fields_of(LinkRevokedData),
}


class Unpublished(Exception):
    """An event has no message in the contract yet. The relay stops before it, and leaves nothing out."""


def message_of(recorded: Recorded) -> CloudEvent:
    """The message of an event.

    Raises:
        Unpublished: the contract has none.
    """
    kind = type(recorded.event)
    published = EVENTS.get(kind)
    if published is None:
        raise Unpublished(f"The contract has no message of {kind.__name__}; add one to handlers/contract/events.py.")
    return CloudEvent(
        id=str(recorded.event_id),
        type=subject_of(kind),
        subject=recorded.stream,
        time=recorded.recorded_at,
        partitionkey=recorded.account_id,
        position=recorded.position,
        correlationid=recorded.cause.correlation_id,
        causationid=recorded.cause.causation_id,
        data=published.made_of(recorded.event),
    )


def encoded(recorded: Recorded) -> bytes:
    """The message of an event, byte for byte as it leaves the house, by whatever way it does.

    Raises:
        Unpublished: the contract has none.
    """
    return message_of(recorded).model_dump_json(exclude_none=True).encode()
