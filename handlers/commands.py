"""What may be asked, by whom, and which handler does it: the way in for HTTP, messages and the command line alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

from domain.account import (
    ACCOUNT,
    AddBillingReceiver,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    EraseBillingReceiver,
    OpenAccount,
)
from domain.allocation import ALLOCATION, AllocateCapacity, CreatePbx, ReleaseCapacity, RemovePbx, UpgradePbx
from domain.messages import Command, Decider, Message, Refusal
from domain.order import ExpireOrder
from domain.price_list import PRICE_LIST, PublishPriceList, price_list_id
from domain.subscription import ActivatePackage
from handlers.context import Actor, Desk, NotPermitted, Role, again
from handlers.dependencies import House
from handlers.requests import (
    BillTo,
    CheckOut,
    CompleteCheckout,
    ConfirmOfflinePayment,
    CreditRefund,
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    MailCreditNote,
    MailInvoiceLink,
    NotePayment,
    OrderExpansion,
    RefundOrder,
    RenewInvoiceLink,
    ReverseRefundedGrant,
    TellAccountManager,
    UseInvoiceLink,
    WithdrawOrder,
)
from handlers.use_cases.erasure import erase_billing_receiver
from handlers.use_cases.fulfilment import activate_package, fulfil_order, reverse_refunded_grant
from handlers.use_cases.invoicing import (
    credit_refund,
    invoice_fulfilled_order,
    mail_credit_note,
    mail_invoice_link,
    renew_invoice_link,
    tell_account_manager,
    use_invoice_link,
)
from handlers.use_cases.payment import complete_checkout, confirm_offline_payment, note_payment, refund_order
from handlers.use_cases.purchase import bill_to, check_out, checkout_of, expire_order, order_expansion, withdraw_order
from infra import tracing
from infra.event_log.log import VersionConflict
from infra.event_log.recorder import AlreadyHandled, Received

Handler = Callable[[Any, Desk], Any]


def decided(decider: Decider[Any, Any, Any], aggregate_id: Callable[[Any], str]) -> Handler:
    """The handler of domain commands that need nothing but their aggregate."""

    def handle_one(command: Command, desk: Desk) -> None:
        work = desk.work(trusting=True)
        work.do(decider, aggregate_id(command), command)
        desk.commit(work, getattr(command, "account_id", None))

    return handle_one


account = decided(ACCOUNT, lambda command: command.account_id)
pool = decided(ALLOCATION, lambda command: command.package_id)
prices = decided(PRICE_LIST, lambda command: price_list_id(command.seller, command.currency))
DECIDED_ALONE = (
    *(account, pool, prices),
    *(activate_package, fulfil_order, reverse_refunded_grant, invoice_fulfilled_order, credit_refund),
)
"""What these do shows nowhere but in their commit, and that asks the inbox by itself: so it is not asked before."""


@dataclass(frozen=True)
class Entry:
    """A handler, and the roles that may ask for it."""

    handler: Handler
    roles: frozenset[Role]
    again: Handler | None = None
    """Gives the answer to a message that was dealt with before, where it is more than events."""

    queue: RLock = field(default_factory=RLock)
    """Where requests of this kind that lost to another wait for each other, or a hundred at once would never end."""


SELLERS = frozenset({Role.ADMIN, Role.SYSTEM})
CUSTOMERS = frozenset({Role.PARTNER, Role.SERVICE}) | SELLERS
COLLECTORS = frozenset({Role.DISTRIBUTOR, Role.ACCOUNT_MANAGER})
US = frozenset({Role.SYSTEM})

COMMANDS: Mapping[type[Message], Entry] = {
    # what is sold, and to whom
    PublishPriceList: Entry(prices, SELLERS),
    OpenAccount: Entry(account, SELLERS),
    AddBillingReceiver: Entry(account, CUSTOMERS),
    ChangeBillingReceiver: Entry(account, CUSTOMERS),
    ChooseDefaultBillingReceiver: Entry(account, CUSTOMERS),
    EraseBillingReceiver: Entry(erase_billing_receiver, SELLERS),
    ActivatePackage: Entry(activate_package, SELLERS),
    # the purchase
    OrderExpansion: Entry(order_expansion, CUSTOMERS),
    BillTo: Entry(bill_to, CUSTOMERS),
    CheckOut: Entry(check_out, CUSTOMERS, checkout_of),
    CompleteCheckout: Entry(complete_checkout, CUSTOMERS),
    NotePayment: Entry(note_payment, US),
    ConfirmOfflinePayment: Entry(confirm_offline_payment, COLLECTORS),
    WithdrawOrder: Entry(withdraw_order, CUSTOMERS),
    ExpireOrder: Entry(expire_order, US),
    # what follows
    FulfilPaidOrder: Entry(fulfil_order, US),
    InvoiceFulfilledOrder: Entry(invoice_fulfilled_order, US),
    MailInvoiceLink: Entry(mail_invoice_link, US),
    TellAccountManager: Entry(tell_account_manager, US),
    UseInvoiceLink: Entry(use_invoice_link, US),
    RenewInvoiceLink: Entry(renew_invoice_link, SELLERS | COLLECTORS),
    # money back
    RefundOrder: Entry(refund_order, SELLERS),
    ReverseRefundedGrant: Entry(reverse_refunded_grant, US),
    CreditRefund: Entry(credit_refund, US),
    MailCreditNote: Entry(mail_credit_note, US),
    # capacity to PBXs
    CreatePbx: Entry(pool, CUSTOMERS),
    AllocateCapacity: Entry(pool, CUSTOMERS),
    ReleaseCapacity: Entry(pool, CUSTOMERS),
    UpgradePbx: Entry(pool, CUSTOMERS),
    RemovePbx: Entry(pool, CUSTOMERS),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its events, and what the handler answers (see there, and `Entry.again`)."""

    desk: Desk
    answer: Any


def handle(
    message: Message,
    house: House,
    actor: Actor,
    *,
    correlation_id: str,
    causation_id: str | None = None,
    message_id: str | None = None,
) -> Outcome:
    """Do what a message asks; where somebody else was faster, load and decide again.

    With a ``message_id``, it is done once: the same message again gives the events of the first time. A refusal is not
    remembered, for nothing was done: what is refused today may be asked again tomorrow.

    Raises:
        domain.messages.Refusal: a rule says no, the actor may not ask for this, or the id is another message's.
    """
    with tracing.wish(type(message).__name__, correlation_id, {"trunkline.role": actor.role}):
        return _handled(message, house, actor, correlation_id, causation_id, message_id)


def _handled(
    message: Message, house: House, actor: Actor, correlation_id: str, causation_id: str | None, message_id: str | None
) -> Outcome:
    entry = COMMANDS[type(message)]
    account_id = getattr(message, "account_id", None)
    if actor.role not in entry.roles or (actor.role is Role.PARTNER and account_id != actor.account_id):
        allowed = ", ".join(sorted(role for role in entry.roles))
        raise NotPermitted(f"{actor} may not ask for {type(message).__name__} here; it takes one of: {allowed}.")

    received = _received(message_id, message) if message_id else None

    def as_before(desk: Desk, positions: range) -> Outcome:
        desk.recorded = house.log.read(positions.start - 1, limit=len(positions)) if positions else []
        return Outcome(desk, entry.again(message, desk) if entry.again else None)

    def once() -> Outcome:
        desk = Desk(house, actor, correlation_id, causation_id, received)
        try:
            if (
                received
                and entry.handler not in DECIDED_ALONE
                and (positions := house.log.handled(received)) is not None
            ):
                return as_before(desk, positions)
            answer = entry.handler(message, desk)
            if received and not desk.committed:
                desk.commit(desk.work(), account_id)
        except AlreadyHandled as before:
            return as_before(desk, before.positions)
        except Refusal:
            if received and (positions := house.log.handled(received)) is not None:
                return as_before(desk, positions)  # it was done, and is refused now because it was
            raise
        return Outcome(desk, answer)

    try:
        return once()
    except VersionConflict:
        with entry.queue:
            return again(once)


def _received(message_id: str, message: Message) -> Received:
    """What the inbox keeps of a message. The time of its arrival is no part of it: a copy arrives later."""
    body = f"{type(message).__name__} {message.model_dump_json(exclude={'at'})}"
    return Received(message_id, hashlib.sha256(body.encode()).digest())
