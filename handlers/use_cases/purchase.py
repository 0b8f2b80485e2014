"""A purchase up to its payment: choose, review, place, cancel, expire."""

from __future__ import annotations

from datetime import date

from domain.account import ACCOUNT, AddBillingReceiver
from domain.order import (
    ORDER,
    ChooseBillingContact,
    ExpireOrder,
    Method,
    PlaceOrder,
    RequestExpansion,
)
from domain.payment_reference import PAYMENT_REFERENCE, ClaimPaymentReference, pi_reference
from domain.price_list import PRICE_LIST, price_list_id
from domain.quote import Quote, Selection, quote
from domain.subscription import SUBSCRIPTION
from handlers.context import RequestContext
from handlers.requests import BillTo, CheckOut, OrderExpansion
from infra.event_log.unit_of_work import UnitOfWork
from infra.payments.provider import Checkout


def order_summary(
    work: UnitOfWork, on: date, account_id: str, package_id: str, selections: tuple[Selection, ...]
) -> Quote:
    """Return what an expansion would cost on a day, without ordering it.

    Raises:
        Refusal: the account cannot order this.
    """
    account = work.state(ACCOUNT, account_id).require(account_id)
    package = work.state(SUBSCRIPTION, package_id)
    term = package.require(package_id, account_id).term
    summary = quote(
        work.state(PRICE_LIST, price_list_id(account.seller, account.currency)),
        currency=account.currency,
        country=account.country,
        term=term,
        on=on,
        selections=selections,
    )
    package.admit(summary.lines)
    return summary


def order_expansion(request: OrderExpansion, context: RequestContext) -> None:
    """Open an order at today's prices, billed to the default receiver of the account until another is chosen."""
    work, now = context.work(), context.now
    if not _is_repetition(work, request):
        summary = order_summary(work, now.date(), request.account_id, request.package_id, request.selections)
        work.do(
            ORDER,
            request.order_id,
            RequestExpansion(
                at=now,
                order_id=request.order_id,
                account_id=request.account_id,
                package_id=request.package_id,
                quote=summary,
                expires_at=now + context.dependencies.order_life,
            ),
        )
        account = work.state(ACCOUNT, request.account_id)
        receiver_id = account.default_receiver_id
        if receiver_id:
            contact = account.receiver(receiver_id)
            choice = ChooseBillingContact(at=now, order_id=request.order_id, receiver_id=receiver_id, contact=contact)
            work.do(ORDER, request.order_id, choice)
    context.commit(work, request.account_id)


def _is_repetition(work: UnitOfWork, request: OrderExpansion) -> bool:
    """Whether this very order exists. It is not priced again: prices and remaining days may have changed."""
    requested = work.state(ORDER, request.order_id).requested
    if requested is None:
        return False
    lines = tuple(Selection(service=line.service, quantity=line.quantity) for line in requested.quote.lines)
    asked = (request.account_id, request.package_id, request.selections)
    return asked == (requested.account_id, requested.package_id, lines)


def bill_to(request: BillTo, context: RequestContext) -> None:
    """Choose the billing contact; a new one also joins the list of the account."""
    work, now = context.work(), context.now
    work.state(ORDER, request.order_id).require(request.order_id, request.account_id)
    if request.contact:
        who = {"account_id": request.account_id, "receiver_id": request.receiver_id}
        work.do(ACCOUNT, request.account_id, AddBillingReceiver(at=now, **who, contact=request.contact))
    contact = work.state(ACCOUNT, request.account_id).receiver(request.receiver_id)
    choice = ChooseBillingContact(at=now, order_id=request.order_id, receiver_id=request.receiver_id, contact=contact)
    work.do(ORDER, request.order_id, choice)
    context.commit(work, request.account_id)


def check_out(request: CheckOut, context: RequestContext) -> Checkout | None:
    """Place the order. Returns the same as `checkout_of`."""
    work, now = context.work(), context.now
    requested = work.state(ORDER, request.order_id).require(request.order_id, request.account_id)
    facts = request.model_dump(exclude={"account_id"})
    work.do(ORDER, request.order_id, PlaceOrder(at=now, **facts))
    if request.pi_number:
        reference = pi_reference(requested.quote.seller, request.pi_number)
        claim = ClaimPaymentReference(at=now, reference=reference, order_id=request.order_id)
        work.do(PAYMENT_REFERENCE, reference, claim)
    context.commit(work, request.account_id)
    return checkout_of(request, context)


def checkout_of(request: CheckOut, context: RequestContext) -> Checkout | None:
    """Return where the customer approves the payment: the same checkout each time.

    Returns None if the order is paid offline, or waits for no payment any more.
    """
    order = context.work().state(ORDER, request.order_id)
    if request.method is Method.OFFLINE or not order.open:
        return None
    return context.dependencies.provider.open_checkout(
        order_id=request.order_id,
        method=request.method,
        amount=order.require(request.order_id).quote.total,
        return_url=f"{context.dependencies.public_url}/orders/{request.order_id}",
    )


def expire_order(command: ExpireOrder, context: RequestContext) -> None:
    """Close an order that nobody paid in time."""
    work = context.work()
    work.do(ORDER, command.order_id, command)
    context.commit(work, work.account_of(ORDER, command.order_id))
