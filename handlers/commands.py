"""The table of commands: each with its handler and the roles that may send it. `handlers.dispatch` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Generic, TypeVar

from domain.account import (
    ACCOUNT,
    AddBillingReceiver,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    EraseBillingReceiver,
    OpenAccount,
)
from domain.allocation import ALLOCATION, AllocateCapacity, CreatePbx, ReleaseCapacity, RemovePbx, UpgradePbx
from domain.messages import Command, Decider, Message
from domain.order import ORDER, CancelOrder, ExpireOrder
from domain.price_list import PRICE_LIST, PublishPriceList, price_list_id
from domain.subscription import ActivatePackage
from handlers.context import COLLECTORS, CUSTOMERS, SELLERS, US, RequestContext, Role
from handlers.requests import (
    BillTo,
    CheckOut,
    CompleteCheckout,
    ConfirmOfflinePayment,
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    IssueCreditNoteForRefund,
    MailCreditNote,
    MailInvoiceLink,
    OrderExpansion,
    ReconcileCapture,
    RefundOrder,
    RenewInvoiceLink,
    ReverseRefundedGrant,
    TellAccountManager,
    UseInvoiceLink,
)
from handlers.use_cases.erasure import erase_billing_receiver
from handlers.use_cases.fulfilment import activate_package, fulfil_order, reverse_refunded_grant
from handlers.use_cases.invoice_links import renew_invoice_link, use_invoice_link
from handlers.use_cases.invoicing import invoice_fulfilled_order, issue_credit_note_for_refund
from handlers.use_cases.mailing import mail_credit_note, mail_invoice_link, tell_account_manager
from handlers.use_cases.offline_payment import confirm_offline_payment
from handlers.use_cases.payment import complete_checkout, reconcile_capture, refund_order
from handlers.use_cases.purchase import bill_to, check_out, checkout_of, expire_order, order_expansion

M = TypeVar("M", bound=Message)
A = TypeVar("A")
Handler = Callable[[M, RequestContext], A]


def decided(decider: Decider[Any, Any, Any], aggregate_id: Callable[[Any], str]) -> Handler[Any, None]:
    """Return a handler of domain commands that need nothing but their aggregate."""

    def handle_one(command: Command, context: RequestContext) -> None:
        work = context.work(use_cache=True)
        work.do(decider, aggregate_id(command), command)
        context.commit(work, getattr(command, "account_id", None))

    return handle_one


account = decided(ACCOUNT, lambda command: command.account_id)
order = decided(ORDER, lambda command: command.order_id)
pool = decided(ALLOCATION, lambda command: command.package_id)
prices = decided(PRICE_LIST, lambda command: price_list_id(command.seller, command.currency))
NO_OUTSIDE_EFFECTS = (
    *(account, order, pool, prices),
    *(activate_package, fulfil_order, reverse_refunded_grant, invoice_fulfilled_order, issue_credit_note_for_refund),
)
"""Handlers whose only effect is their commit. It checks the inbox, so these need no check before."""


@dataclass(frozen=True)
class Entry(Generic[M, A]):
    """A handler, and the roles that may use it."""

    handler: Handler[M, A]
    roles: frozenset[Role]
    replay_answer: Handler[M, A] | None = None
    """Returns the answer to a message that was handled before, if it is more than its events."""

    retry_lock: RLock = field(default_factory=RLock)
    """Serialises the retries of one kind of request: a hundred at once would keep conflicting with each other."""


COMMANDS: Mapping[type[Message], Entry[Any, Any]] = {
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
    ReconcileCapture: Entry(reconcile_capture, US),
    ConfirmOfflinePayment: Entry(confirm_offline_payment, COLLECTORS),
    CancelOrder: Entry(order, CUSTOMERS),
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
    IssueCreditNoteForRefund: Entry(issue_credit_note_for_refund, US),
    MailCreditNote: Entry(mail_credit_note, US),
    # capacity to PBXs
    CreatePbx: Entry(pool, CUSTOMERS),
    AllocateCapacity: Entry(pool, CUSTOMERS),
    ReleaseCapacity: Entry(pool, CUSTOMERS),
    UpgradePbx: Entry(pool, CUSTOMERS),
    RemovePbx: Entry(pool, CUSTOMERS),
}
