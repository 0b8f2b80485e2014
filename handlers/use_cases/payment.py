"""Payment at the provider: captured, declined, reconciled with what the provider says, refunded."""

from __future__ import annotations

from domain.messages import Refusal
from domain.money import Money
from domain.order import ORDER, CapturePayment, DeclinePayment, Method, OrderClosed, RefundPayment
from domain.payment_reference import PAYMENT_REFERENCE, ClaimPaymentReference, capture_reference
from handlers.context import RequestContext, retry_on_conflict
from handlers.requests import CompleteCheckout, ReconcileCapture, RefundOrder
from infra.payments.provider import Capture, Decline


class UnknownPayment(Refusal):
    """The provider has no such capture."""


def complete_checkout(request: CompleteCheckout, context: RequestContext) -> Capture | Decline:
    """Capture what the customer approved, once, and record the answer of the provider.

    Raises:
        OrderClosed: the order cannot be paid any more; no money was taken.
        UnknownPayment: the checkout belongs to another order. The payment is recorded there, and not revealed here.
    """
    work = context.work()
    order = work.state(ORDER, request.order_id)
    order.require(request.order_id, request.account_id)
    if order.captured is None and not order.open:
        raise OrderClosed(f"The order is {order.status}; no money was taken.")
    outcome = context.dependencies.provider.capture(request.checkout_id)
    if isinstance(outcome, Capture):
        # The money is captured, whatever happened to the order meanwhile: only the recording is retried.
        retry_on_conflict(_record_capture, context, outcome)
        if outcome.order_id != request.order_id:
            raise UnknownPayment("The provider knows no such payment of this order.")
        return outcome
    decline = DeclinePayment(
        at=context.now, order_id=request.order_id, attempt_id=outcome.attempt_id, reason=outcome.reason
    )
    work.do(ORDER, request.order_id, decline)
    context.commit(work, request.account_id)
    return outcome


def reconcile_capture(request: ReconcileCapture, context: RequestContext) -> None:
    """Ask the provider for a capture by its id, and record it. A repetition changes nothing.

    Raises:
        UnknownPayment: the provider has no such capture: the hint was forged, or meant for another merchant.
    """
    capture = context.dependencies.provider.find_capture(request.capture_id)
    if capture is None:
        raise UnknownPayment("The provider knows no such payment.")
    _record_capture(context, capture)


def _record_capture(context: RequestContext, capture: Capture) -> None:
    work = context.work()
    reference = capture_reference(context.dependencies.provider.name, capture.capture_id)
    claim = ClaimPaymentReference(at=context.now, reference=reference, order_id=capture.order_id)
    work.do(PAYMENT_REFERENCE, reference, claim)
    payment = CapturePayment(at=context.now, **capture.model_dump(exclude={"checkout_id"}))
    work.do(ORDER, capture.order_id, payment)
    context.commit(work, work.account_of(ORDER, capture.order_id))


def refund_order(request: RefundOrder, context: RequestContext) -> None:
    """Refund a payment: decided by our rules, then done by the provider (once per refund id), then recorded."""
    work = context.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    left = Money(amount_minor=order.refundable_minor, currency=requested.quote.currency)
    refund = RefundPayment(
        at=context.now,
        order_id=request.order_id,
        refund_id=request.refund_id,
        amount=request.amount or left,
        services=request.services,
    )
    decided = work.do(ORDER, request.order_id, refund)
    if decided and order.captured and order.captured.method is not Method.OFFLINE:
        context.dependencies.provider.refund(
            order.captured.capture_id, refund_id=request.refund_id, amount=refund.amount
        )
    context.commit(work, requested.account_id)
