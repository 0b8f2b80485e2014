"""The messages of events: for each stored event, the part of it that is published.

These models are a contract and follow its rule: fields may be added, and nothing else may change
(`handlers.contract.changes` checks it). They hold no personal data and no text that a person wrote.
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
    """A value from a list that may grow: readers must accept values that they do not know."""
    return Field(description=f"{what} New values may be added.", examples=[str(value) for value in values])


class Data(BaseModel):
    """The data of a message. Readers must ignore fields that they do not know."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


# --- values --------------------------------------------------------------------------------------------------------


class MoneyData(Data):
    """An amount in whole minor units of an ISO 4217 currency."""

    amount_minor: int
    currency: str


class TermData(Data):
    """The term of a package in UTC dates: from ``starts_on`` to before ``ends_on``."""

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
    """The tax that a customer of a country pays on a tax class; ``rate_bp`` in basis points."""

    country: str
    tax_class: str
    category: str
    rate_bp: int
    note: str


class LineData(Data):
    """One service of an order, with every figure of its price."""

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
    """The tax of one rate (EN 16931): rounded once, on the sum of its lines."""

    category: str
    rate_bp: int
    note: str
    net_minor: int
    tax_minor: int


class QuoteData(Data):
    """The order summary: what was ordered, and its price."""

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
    """The evidence of a document: the hash of its bytes, which are not published."""

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
    """A billing receiver of an account, by its id; its details are not published."""

    account_id: str
    receiver_id: str


class PriceListPublishedData(Data):
    """New prices, valid from ``valid_from`` until a later version replaces them."""

    seller: str
    currency: str
    version: int
    valid_from: date
    offers: tuple[OfferData, ...]
    taxes: tuple[TaxRuleData, ...]


# --- packages and their pools --------------------------------------------------------------------------------------


class PackageActivatedData(Data):
    """A hosting package was activated with its first capacity."""

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
    """A paid order activated a flat service."""

    package_id: str
    order_id: str
    service: str


class GrantReversedData(Data):
    """The grant of an order was reversed after its refund."""

    package_id: str
    order_id: str
    withdrawn: Quantities
    switched_off: tuple[str, ...]


class CapacityGrantedData(Data):
    """The pool grew by the activation of the package or by an order; ``grant_id`` is its id."""

    package_id: str
    account_id: str
    grant_id: str
    quantities: Quantities


class CapacityWithdrawnData(Data):
    """The pool shrank by a refund. PBXs keep what they hold, so the pool may be over-allocated."""

    package_id: str
    withdrawal_id: str
    quantities: Quantities


class PbxCreatedData(Data):
    """A PBX was created with extensions from the share of its plan."""

    package_id: str
    pbx_id: str
    plan: str = _one_of(Plan, "The plan that all its extensions are on.")
    extensions: int


class CapacityAllocatedData(Data):
    """A PBX got more of a service; ``drawn`` of it came from the pool, the rest is free with every PBX."""

    package_id: str
    pbx_id: str
    allocation_id: str
    plan: str = _one_of(Plan, "The plan of the PBX.")
    service: str
    quantity: int
    drawn: int


class CapacityReleasedData(Data):
    """A PBX returned units of a service to the pool."""

    package_id: str
    pbx_id: str
    release_id: str
    plan: str = _one_of(Plan, "The plan of the PBX.")
    service: str
    quantity: int


class PbxUpgradedData(Data):
    """A PBX was upgraded from Enterprise to Ultimate; its extensions moved to that share."""

    package_id: str
    pbx_id: str
    extensions: int


class PbxRemovedData(Data):
    """A PBX was removed; what it had drawn returned to the pool."""

    package_id: str
    pbx_id: str
    plan: str = _one_of(Plan, "The plan that it was on.")
    released: Quantities


# --- orders and payments -------------------------------------------------------------------------------------------


class ExpansionRequestedData(Data):
    """A customer requested more capacity or new services for a package, at the quoted price."""

    order_id: str
    account_id: str
    package_id: str
    quote: QuoteData
    requested_at: AwareDatetime
    expires_at: AwareDatetime


class BillingContactChosenData(Data):
    """The receiver of the invoice was chosen."""

    order_id: str
    receiver_id: str


class OrderPlacedData(Data):
    """The customer placed the order with a payment method."""

    order_id: str
    method: str = _one_of(Method, "How it is to be paid.")
    pi_number: str | None = Field(None, description="The number of the proforma invoice, if there is one.")
    placed_at: AwareDatetime


class PaymentCapturedData(Data):
    """The payment of the order was captured."""

    order_id: str
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    amount: MoneyData
    captured_at: AwareDatetime


class PaymentDeclinedData(Data):
    """The provider declined the payment. The customer may try again."""

    order_id: str
    method: str = _one_of(Method, "How it was to be paid.")
    attempt_id: str
    declined_at: AwareDatetime


class PaymentSetAsideData(Data):
    """Money arrived that pays no order; a person decides what happens to it."""

    order_id: str
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    amount: MoneyData
    reason: str = _one_of(AsideReason, "Why it pays no order.")
    captured_at: AwareDatetime


class OrderFulfilledData(Data):
    """What was paid for was granted to the package."""

    order_id: str
    fulfilled_at: AwareDatetime


class OrderCancelledData(Data):
    """The order was cancelled before it was paid."""

    order_id: str
    cancelled_at: AwareDatetime


class OrderExpiredData(Data):
    """The order was not paid in time."""

    order_id: str
    expired_at: AwareDatetime


class PaymentRefundedData(Data):
    """Money was refunded to the customer; the grants of ``services`` are to be reversed."""

    order_id: str
    refund_id: str
    capture_id: str
    amount: MoneyData
    services: tuple[str, ...]
    refunded_at: AwareDatetime


class PaymentReferenceClaimedData(Data):
    """The reference of a payment was claimed by this order: it pays no other."""

    reference: str
    order_id: str


# --- invoices and their links --------------------------------------------------------------------------------------


class InvoiceNumberAssignedData(Data):
    """The next number of a series was assigned to this document."""

    seller: str
    year: int
    sequence: int
    number: str
    document_id: str


class InvoiceIssuedData(Data):
    """An order was invoiced; the amounts are those of the invoice. The buyer is not published."""

    invoice_id: str
    number: str
    account_id: str
    order_id: str
    package_id: str
    quote: QuoteData
    method: str = _one_of(Method, "How it was paid.")
    capture_id: str
    pi_number: str | None = Field(None, description="The number of the proforma invoice, if there is one.")
    paid_at: AwareDatetime
    issued_at: AwareDatetime
    document: DocumentData


class InvoiceEmailedData(Data):
    """A mail server accepted the mail with the link."""

    invoice_id: str
    link_id: str
    emailed_at: AwareDatetime


class CreditNoteIssuedData(Data):
    """An invoice was credited, in part or in full; the amounts are what was refunded, so they are positive."""

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
    """The bytes of an invoice or credit note were deleted after their retention period."""

    invoice_id: str
    sha256: str
    deleted_at: AwareDatetime


class LinkIssuedData(Data):
    """A link to an invoice was issued. Only its recipient knows the token that opens it."""

    link_id: str
    invoice_id: str
    order_id: str
    ordinal: int
    expires_at: AwareDatetime


class LinkConsumedData(Data):
    """The link was used: the invoice was downloaded."""

    link_id: str
    consumed_at: AwareDatetime


class LinkRefusedData(Data):
    """An attempt to use the link was refused."""

    link_id: str
    reason: str = _one_of(RefusalReason, "Why.")
    refused_at: AwareDatetime


class LinkRevokedData(Data):
    """A newer link replaced this one."""

    link_id: str
    replaced_by: str | None = Field(None, description="The newer link; absent if it was not recorded.")
    revoked_at: AwareDatetime


# --- the message of each event -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """The published part of a stored event: its model, and the function that makes it from the event.

    Most models take the fields of the event by name. If a stored event changes, a function of its own keeps its message
    the same.
    """

    data: type[Data]
    from_event: Callable[[Any], Data]


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
    """An event has no message in the contract. The relay stops before it rather than skip it."""


def message_of(recorded: Recorded) -> CloudEvent:
    """Return the message of an event.

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
        data=published.from_event(recorded.event),
    )


def encoded(recorded: Recorded) -> bytes:
    """Return the bytes of the message of an event, the same by every way it is sent.

    Raises:
        Unpublished: the contract has none.
    """
    return message_of(recorded).model_dump_json(exclude_none=True).encode()
