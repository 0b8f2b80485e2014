"""Offline payment: collected, and confirmed by an account manager or a distributor."""

from __future__ import annotations

from domain.messages import Refusal
from domain.order import ORDER, CapturePayment, Method
from handlers.context import RequestContext
from handlers.requests import ConfirmOfflinePayment

CAPTURE_ID_MAX = 100
"""Characters."""


class NotAnOfflineOrder(Refusal):
    """The order is paid at the provider, and cannot be confirmed by hand."""


def confirm_offline_payment(request: ConfirmOfflinePayment, context: RequestContext) -> None:
    """Record the money that an account manager or a distributor collected.

    An amount that differs from the order's is set aside under an id of its own, so that the right one can follow.

    Raises:
        NotAnOfflineOrder: its payment comes from the provider.
    """
    work = context.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    if order.placed is None or order.placed.method is not Method.OFFLINE:
        raise NotAnOfflineOrder("The order is not to be paid offline; its payment comes from the provider.")
    differs = request.amount != requested.quote.total
    amount = f"{request.amount.amount_minor}{request.amount.currency}:" if differs else ""
    capture_id = f"offline:{amount}{order.placed.pi_number or request.order_id}".replace("/", "-")[:CAPTURE_ID_MAX]
    payment = CapturePayment(
        at=context.now,
        order_id=request.order_id,
        method=Method.OFFLINE,
        capture_id=capture_id,
        amount=request.amount,
        captured_at=context.now,
    )
    work.do(ORDER, request.order_id, payment)
    context.commit(work, requested.account_id)
