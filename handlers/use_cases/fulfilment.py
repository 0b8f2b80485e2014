"""What a payment or a refund does to a package: Order, Subscription and Allocation in one commit."""

from __future__ import annotations

from domain.account import ACCOUNT
from domain.allocation import ALLOCATION, GrantCapacity, WithdrawCapacity
from domain.messages import Refusal
from domain.order import ORDER, FulfilOrder, SetPaymentAside
from domain.services import Pricing
from domain.subscription import SUBSCRIPTION, ActivatePackage, ExpandPackage, ReverseGrant
from handlers.context import RequestContext
from handlers.requests import FulfilPaidOrder, ReverseRefundedGrant


def activate_package(command: ActivatePackage, context: RequestContext) -> None:
    """Activate a package of an account, with its pool."""
    work = context.work()
    work.state(ACCOUNT, command.account_id).require(command.account_id)
    activated = work.do(SUBSCRIPTION, command.package_id, command)
    if activated:
        grant = GrantCapacity(
            at=context.now,
            package_id=command.package_id,
            account_id=command.account_id,
            grant_id=command.package_id,
            quantities=command.quantities,
        )
        work.do(ALLOCATION, command.package_id, grant)
    context.commit(work, command.account_id)


def fulfil_order(request: FulfilPaidOrder, context: RequestContext) -> None:
    """Grant what was paid for. If the package cannot take it any more, set the payment aside for a person."""
    try:
        _grant(request, context)
    except Refusal as refusal:
        work = context.work()
        order = work.state(ORDER, request.order_id)
        if order.captured is None:
            raise
        aside = SetPaymentAside(at=context.now, order_id=request.order_id, explanation=str(refusal))
        work.do(ORDER, request.order_id, aside)
        context.commit(work, work.account_of(ORDER, request.order_id))


def _grant(request: FulfilPaidOrder, context: RequestContext) -> None:
    work, now = context.work(use_cache=True), context.now
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    if work.do(ORDER, request.order_id, FulfilOrder(at=now, order_id=request.order_id)):
        lines = tuple(line for line in requested.quote.lines if line.service not in order.given_up)
        expansion = ExpandPackage(at=now, package_id=requested.package_id, order_id=request.order_id, lines=lines)
        work.do(SUBSCRIPTION, requested.package_id, expansion)
        pooled = {line.service: line.quantity for line in lines if line.to_pbxs and line.pricing is Pricing.QUANTITY}
        grant = GrantCapacity(
            at=now,
            package_id=requested.package_id,
            account_id=requested.account_id,
            grant_id=request.order_id,
            quantities=pooled,
        )
        if pooled:
            work.do(ALLOCATION, requested.package_id, grant)
    context.commit(work, requested.account_id)


def reverse_refunded_grant(request: ReverseRefundedGrant, context: RequestContext) -> None:
    """Reverse what a refund gave up. Does nothing if the order was not fulfilled: then it never will be."""
    work, now = context.work(), context.now
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    refunded = order.refund(request.refund_id)
    if not order.fulfilled:
        return
    reversal = ReverseGrant(
        at=now, package_id=requested.package_id, order_id=request.order_id, services=refunded.services
    )
    for event in work.do(SUBSCRIPTION, requested.package_id, reversal):
        pool = work.state(ALLOCATION, requested.package_id)
        withdrawn = {service: n for service, n in getattr(event, "withdrawn", {}).items() if service in pool.totals}
        withdrawal = WithdrawCapacity(
            at=now, package_id=requested.package_id, withdrawal_id=request.refund_id, quantities=withdrawn
        )
        if withdrawn:
            work.do(ALLOCATION, requested.package_id, withdrawal)
    context.commit(work, requested.account_id)
