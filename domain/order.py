r"""An expansion order, from request to fulfilment.

requested -> placed -> paid -> fulfilled
    |          |        \---------\----> (partly) refunded
    |          |\-> declined -> placed again, or paid after all
    \----------+--> cancelled, expired
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, assert_never

from pydantic import AwareDatetime

from domain.account import BillingContact, PersonalContact
from domain.messages import Command, Decider, Event, Identifier, Refusal, Text
from domain.money import Money
from domain.payment_reference import PiNumber
from domain.quote import Quote
from domain.services import ServiceCode


class Method(StrEnum):
    """How an order is paid."""

    PAYPAL = "paypal"
    CARD = "card"
    OFFLINE = "offline"


class Status(StrEnum):
    """The status of an order."""

    REQUESTED = "requested"
    PLACED = "placed"
    DECLINED = "declined"
    PAID = "paid"
    FULFILLED = "fulfilled"
    PARTLY_REFUNDED = "partly_refunded"
    REFUNDED = "refunded"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class AsideReason(StrEnum):
    """Why a received payment does not fulfil an order by itself."""

    NOT_PLACED = "not_placed"
    ALREADY_PAID = "already_paid"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    AMOUNT_DIFFERS = "amount_differs"
    CURRENCY_DIFFERS = "currency_differs"
    NO_LONGER_FITS = "no_longer_fits"


class ExpansionRequested(Event):
    """A customer requested more capacity or new services for a package, at the price shown."""

    TOPIC: ClassVar[str] = "order.ExpansionRequested.v1"
    order_id: Identifier
    account_id: Identifier
    package_id: Identifier
    quote: Quote
    requested_at: AwareDatetime
    expires_at: AwareDatetime


class BillingContactChosen(Event):
    """The invoice of the order will go to this contact, with these details."""

    TOPIC: ClassVar[str] = "order.BillingContactChosen.v1"
    order_id: Identifier
    receiver_id: Identifier
    contact: PersonalContact


class OrderPlaced(Event):
    """The customer placed the order and chose how to pay."""

    TOPIC: ClassVar[str] = "order.OrderPlaced.v1"
    order_id: Identifier
    method: Method
    pi_number: PiNumber | None
    placed_at: AwareDatetime


class PaymentCaptured(Event):
    """The customer's payment for this order was received."""

    TOPIC: ClassVar[str] = "order.PaymentCaptured.v1"
    order_id: Identifier
    method: Method
    capture_id: Identifier
    amount: Money
    captured_at: AwareDatetime


class PaymentDeclined(Event):
    """The provider declined the payment. The customer may try again."""

    TOPIC: ClassVar[str] = "order.PaymentDeclined.v1"
    order_id: Identifier
    method: Method
    attempt_id: Identifier
    reason: Text
    declined_at: AwareDatetime


class PaymentSetAside(Event):
    """A payment arrived that cannot fulfil the order by itself; a person decides what to do with it."""

    TOPIC: ClassVar[str] = "order.PaymentSetAside.v1"
    order_id: Identifier
    method: Method
    capture_id: Identifier
    amount: Money
    reason: AsideReason
    explanation: str
    captured_at: AwareDatetime


class OrderFulfilled(Event):
    """The package received what was paid for."""

    TOPIC: ClassVar[str] = "order.OrderFulfilled.v1"
    order_id: Identifier
    fulfilled_at: AwareDatetime


class OrderCancelled(Event):
    """The order was cancelled before it was paid."""

    TOPIC: ClassVar[str] = "order.OrderCancelled.v1"
    order_id: Identifier
    reason: Text
    cancelled_at: AwareDatetime


class OrderExpired(Event):
    """The order was not paid in time."""

    TOPIC: ClassVar[str] = "order.OrderExpired.v1"
    order_id: Identifier
    expired_at: AwareDatetime


class PaymentRefunded(Event):
    """Money was refunded to the customer; the grants of ``services`` are to be reversed."""

    TOPIC: ClassVar[str] = "order.PaymentRefunded.v1"
    order_id: Identifier
    refund_id: Identifier
    capture_id: Identifier
    amount: Money
    services: tuple[ServiceCode, ...]
    refunded_at: AwareDatetime


OrderEvent = (
    ExpansionRequested
    | BillingContactChosen
    | OrderPlaced
    | PaymentCaptured
    | PaymentDeclined
    | PaymentSetAside
    | OrderFulfilled
    | OrderCancelled
    | OrderExpired
    | PaymentRefunded
)


class RequestExpansion(Command):
    """Open an order at the quoted price. It expires at ``expires_at`` if it is not paid."""

    order_id: Identifier
    account_id: Identifier
    package_id: Identifier
    quote: Quote
    expires_at: AwareDatetime


class ChooseBillingContact(Command):
    """Choose who gets the invoice."""

    order_id: Identifier
    receiver_id: Identifier
    contact: BillingContact


class PlaceOrder(Command):
    """Place the order and choose how to pay. ``pi_number`` is valid for offline payment only."""

    order_id: Identifier
    method: Method
    pi_number: PiNumber | None = None


class CapturePayment(Command):
    """Record a payment for the order, reported by the provider or confirmed by whoever collected it."""

    order_id: Identifier
    method: Method
    capture_id: Identifier
    amount: Money
    captured_at: AwareDatetime


class SetPaymentAside(Command):
    """Record that a captured payment cannot be fulfilled, and why."""

    order_id: Identifier
    explanation: str


class DeclinePayment(Command):
    """Record that the provider declined the payment."""

    order_id: Identifier
    attempt_id: Identifier
    reason: Text


class FulfilOrder(Command):
    """Record that the package received what was paid for; committed together with the grant itself."""

    order_id: Identifier


class CancelOrder(Command):
    """Cancel an order that is not paid."""

    order_id: Identifier
    account_id: Identifier
    reason: Text = "cancelled by the customer"


class ExpireOrder(Command):
    """Close an order that was not paid in time."""

    order_id: Identifier


class RefundPayment(Command):
    """Record a refund. The customer gives up ``services`` with it; a full refund gives up all of them."""

    order_id: Identifier
    refund_id: Identifier
    amount: Money
    services: tuple[ServiceCode, ...] = ()


OrderCommand = (
    RequestExpansion
    | ChooseBillingContact
    | PlaceOrder
    | CapturePayment
    | SetPaymentAside
    | DeclinePayment
    | FulfilOrder
    | CancelOrder
    | ExpireOrder
    | RefundPayment
)


@dataclass(frozen=True)
class Order:
    """An order, folded from its events; ``requested`` is None if the order does not exist."""

    requested: ExpansionRequested | None = None
    status: Status = Status.REQUESTED
    billing: BillingContactChosen | None = None
    placed: OrderPlaced | None = None
    captured: PaymentCaptured | None = None
    fulfilled: bool = False
    payments: frozenset[str] = frozenset()
    attempts: frozenset[str] = frozenset()
    refunds: Mapping[str, PaymentRefunded] = field(default_factory=dict)
    given_up: frozenset[str] = frozenset()
    unfulfillable: bool = False

    def require(self, order_id: str, account_id: str | None = None) -> ExpansionRequested:
        """Return the event that opened the order.

        Raises:
            UnknownOrder: no order has this id, or it belongs to another account (which the answer does not reveal).
        """
        if self.requested is None or account_id not in (None, self.requested.account_id):
            raise UnknownOrder(f"There is no order {order_id}; name one of the account's own orders.")
        return self.requested

    @property
    def open(self) -> bool:
        """Whether the order can still be paid."""
        return self.status in (Status.PLACED, Status.DECLINED)

    @property
    def refundable_minor(self) -> int:
        """The part of the payment that was not refunded, in minor units."""
        captured = self.captured.amount.amount_minor if self.captured else 0
        return captured - sum(refund.amount.amount_minor for refund in self.refunds.values())

    def refund(self, refund_id: str) -> PaymentRefunded:
        """Return a refund of the order.

        Raises:
            UnknownRefund: the order has no refund of this id.
        """
        if refund_id not in self.refunds:
            raise UnknownRefund(f"There is no refund {refund_id}; refund the order first.")
        return self.refunds[refund_id]


class UnknownOrder(Refusal):
    """The account has no such order."""


class OrderExists(Refusal):
    """Another order has this id."""


class NothingToPay(Refusal):
    """The order totals zero, so there is nothing to pay."""


class NoBillingContact(Refusal):
    """The order has no billing contact."""


class OrderClosed(Refusal):
    """The order's status no longer allows this."""


class PiNumberNeedsOffline(Refusal):
    """A PI number was given for a payment method that has none."""


class NotYetExpired(Refusal):
    """The payment deadline has not passed."""


class NotPaid(Refusal):
    """The order has not been paid."""


class UnknownRefund(Refusal):
    """The order has no such refund."""


class RefundNotPossible(Refusal):
    """The refund exceeds the payment or is in another currency."""


def decide(command: OrderCommand, order: Order) -> list[OrderEvent]:
    """The order's next events. Outside facts are recorded even if unwelcome; requests that break a rule are refused.

    Raises:
        Refusal: the command breaks a rule; the subclasses above are the reasons.
    """
    match command:
        case RequestExpansion():
            return _request(command, order)
        case ChooseBillingContact():
            return _choose_contact(command, order)
        case PlaceOrder():
            return _place(command, order)
        case CapturePayment():
            return _capture(command, order)
        case SetPaymentAside():
            return _set_aside(command, order)
        case DeclinePayment():
            return _decline(command, order)
        case FulfilOrder():
            return _fulfil(command, order)
        case CancelOrder():
            return _cancel(command, order)
        case ExpireOrder():
            return _expire(command, order)
        case RefundPayment():
            return _refund(command, order)
        case _:
            assert_never(command)


def _request(command: RequestExpansion, order: Order) -> list[OrderEvent]:
    if order.requested:
        asked = (command.account_id, command.package_id, command.quote.lines)
        if asked == (order.requested.account_id, order.requested.package_id, order.requested.quote.lines):
            return []
        raise OrderExists(f"The order {command.order_id} already exists with other lines; choose a new id.")
    if command.quote.total.amount_minor == 0:
        raise NothingToPay("The order comes to 0; there is nothing to pay, so nothing can be ordered.")
    return [ExpansionRequested(**command.model_dump(exclude={"at"}), requested_at=command.at)]


def _choose_contact(command: ChooseBillingContact, order: Order) -> list[OrderEvent]:
    order.require(command.order_id)
    chosen = BillingContactChosen.model_validate(command.model_dump(exclude={"at"}))
    if order.billing == chosen:
        return []
    if order.status not in (Status.REQUESTED, Status.PLACED, Status.DECLINED):
        raise OrderClosed(f"The order is {order.status}; its billing contact can be chosen until it is paid.")
    return [chosen]


def _place(command: PlaceOrder, order: Order) -> list[OrderEvent]:
    requested = order.require(command.order_id)
    if command.pi_number and command.method is not Method.OFFLINE:
        raise PiNumberNeedsOffline(f"A PI number is for offline payment only; leave it out for {command.method}.")
    if order.billing is None:
        raise NoBillingContact("The order has no billing contact; choose a billing contact first.")
    if order.billing.contact.erased:
        raise NoBillingContact("The order's billing contact was erased; choose another billing contact first.")
    if order.placed and (order.placed.method, order.placed.pi_number) == (command.method, command.pi_number):
        return []
    if order.status not in (Status.REQUESTED, Status.PLACED, Status.DECLINED):
        raise OrderClosed(f"The order is {order.status}; request a new one.")
    if command.at >= requested.expires_at:
        raise OrderClosed(f"The order expired at {requested.expires_at:%Y-%m-%d %H:%M} UTC; request a new one.")
    return [OrderPlaced(**command.model_dump(exclude={"at"}), placed_at=command.at)]


def _capture(command: CapturePayment, order: Order) -> list[OrderEvent]:
    requested = order.require(command.order_id)
    if command.capture_id in order.payments:
        return []
    total = requested.quote.total
    if order.open and command.captured_at >= requested.expires_at:
        expired = OrderExpired(order_id=command.order_id, expired_at=command.at)
        return [expired, _aside(command, AsideReason.EXPIRED, "The payment came after the order had expired.")]
    if not order.open:
        return [_aside(command, _closed(order.status), f"The order was {order.status} when the payment came.")]
    if command.amount.currency != total.currency:
        return [_aside(command, AsideReason.CURRENCY_DIFFERS, f"The order is in {total.currency}.")]
    if command.amount != total:
        return [_aside(command, AsideReason.AMOUNT_DIFFERS, f"The order comes to {total.amount_minor} minor units.")]
    return [PaymentCaptured.model_validate(command.model_dump(exclude={"at"}))]


def _closed(status: Status) -> AsideReason:
    reasons = {
        Status.REQUESTED: AsideReason.NOT_PLACED,
        Status.CANCELLED: AsideReason.CANCELLED,
        Status.EXPIRED: AsideReason.EXPIRED,
    }
    return reasons.get(status, AsideReason.ALREADY_PAID)


def _aside(payment: CapturePayment | PaymentCaptured, reason: AsideReason, explanation: str) -> PaymentSetAside:
    facts = payment.model_dump(include={"order_id", "method", "capture_id", "amount", "captured_at"})
    return PaymentSetAside(**facts, reason=reason, explanation=explanation)


def _set_aside(command: SetPaymentAside, order: Order) -> list[OrderEvent]:
    order.require(command.order_id)
    if order.captured is None:
        raise NotPaid("The order has no payment to set aside.")
    if order.fulfilled or order.unfulfillable:
        return []
    return [_aside(order.captured, AsideReason.NO_LONGER_FITS, command.explanation)]


def _decline(command: DeclinePayment, order: Order) -> list[OrderEvent]:
    order.require(command.order_id)
    if command.attempt_id in order.attempts or not order.open or order.placed is None:
        return []
    facts = command.model_dump(exclude={"at"})
    return [PaymentDeclined(**facts, method=order.placed.method, declined_at=command.at)]


def _fulfil(command: FulfilOrder, order: Order) -> list[OrderEvent]:
    order.require(command.order_id)
    if order.fulfilled or order.unfulfillable or order.status is Status.REFUNDED:
        return []
    if order.captured is None:
        raise NotPaid(f"The order is {order.status}; only a paid order can be fulfilled.")
    return [OrderFulfilled(order_id=command.order_id, fulfilled_at=command.at)]


def _cancel(command: CancelOrder, order: Order) -> list[OrderEvent]:
    order.require(command.order_id, command.account_id)
    if order.status is Status.CANCELLED:
        return []
    if order.status not in (Status.REQUESTED, Status.PLACED, Status.DECLINED):
        raise OrderClosed(f"The order is {order.status} and cannot be cancelled; a paid order can be refunded.")
    return [OrderCancelled(order_id=command.order_id, reason=command.reason, cancelled_at=command.at)]


def _expire(command: ExpireOrder, order: Order) -> list[OrderEvent]:
    requested = order.require(command.order_id)
    if order.status not in (Status.REQUESTED, Status.PLACED, Status.DECLINED):
        return []
    if command.at < requested.expires_at:
        raise NotYetExpired(f"The order can be paid until {requested.expires_at:%Y-%m-%d %H:%M} UTC.")
    return [OrderExpired(order_id=command.order_id, expired_at=command.at)]


def _refund(command: RefundPayment, order: Order) -> list[OrderEvent]:
    requested = order.require(command.order_id)
    if command.refund_id in order.refunds:
        return []
    if order.captured is None:
        raise NotPaid(f"The order is {order.status}; only a payment can be refunded.")
    left = Money(amount_minor=order.refundable_minor, currency=order.captured.amount.currency)
    if command.amount.currency != left.currency or not 1 <= command.amount.amount_minor <= left.amount_minor:
        raise RefundNotPossible(
            f"{command.amount.amount_minor} {command.amount.currency} cannot be refunded; "
            f"from 1 to {left.amount_minor} minor units of {left.currency} can."
        )
    ordered = [line.service for line in requested.quote.lines]
    for service in command.services:
        if service not in ordered:
            raise RefundNotPossible(f"{service} is not in the order; its services are {', '.join(ordered)}.")
    services = tuple(ordered) if command.amount == left else command.services
    return [
        PaymentRefunded(
            order_id=command.order_id,
            refund_id=command.refund_id,
            capture_id=order.captured.capture_id,
            amount=command.amount,
            services=services,
            refunded_at=command.at,
        )
    ]


def evolve(order: Order, event: OrderEvent) -> Order:
    """The order after one more event."""
    match event:
        case ExpansionRequested():
            return replace(order, requested=event)
        case BillingContactChosen():
            return replace(order, billing=event)
        case OrderPlaced():
            return replace(order, placed=event, status=Status.PLACED)
        case PaymentCaptured():
            payments = order.payments | {event.capture_id}
            return replace(order, captured=event, payments=payments, status=Status.PAID)
        case PaymentDeclined():
            return replace(order, attempts=order.attempts | {event.attempt_id}, status=Status.DECLINED)
        case PaymentSetAside():
            ours = order.captured is not None and order.captured.capture_id == event.capture_id
            payments = order.payments | {event.capture_id}
            return replace(order, payments=payments, unfulfillable=order.unfulfillable or ours)
        case OrderFulfilled():
            status = Status.FULFILLED if order.status is Status.PAID else order.status
            return replace(order, fulfilled=True, status=status)
        case OrderCancelled():
            return replace(order, status=Status.CANCELLED)
        case OrderExpired():
            return replace(order, status=Status.EXPIRED)
        case PaymentRefunded():
            refunds = {**order.refunds, event.refund_id: event}
            refunded = replace(order, refunds=refunds, given_up=order.given_up | set(event.services))
            whole = refunded.refundable_minor == 0
            return replace(refunded, status=Status.REFUNDED if whole else Status.PARTLY_REFUNDED)
        case _:
            assert_never(event)


ORDER: Decider[OrderCommand, Order, OrderEvent] = Decider("order", Order(), decide, evolve, personal=True)
