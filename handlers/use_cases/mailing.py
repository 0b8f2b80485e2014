"""Mails: the link of an invoice, a credit note, an offline payment to collect."""

from __future__ import annotations

from domain.account import ACCOUNT
from domain.invoice import (
    INVOICE,
    CreditNoteIssued,
    RecordInvoiceEmailed,
    UnknownInvoice,
)
from domain.invoice_link import INVOICE_LINK, UnknownLink
from domain.order import ORDER, Method
from handlers.context import RequestContext
from handlers.requests import (
    MailCreditNote,
    MailInvoiceLink,
    TellAccountManager,
)
from handlers.use_cases.documents import billing_of, issued_invoice, kept_document
from infra import link_tokens
from infra.mail import messages as mails
from infra.settings import WrongSetting


def mail_invoice_link(request: MailInvoiceLink, context: RequestContext) -> None:
    """Mail the order summary and the link. Recorded once the mail server has accepted it, and then never sent again.

    Does nothing if the contact was erased: the invoice is on the portal.

    Raises:
        UnknownInvoice, UnknownLink: none has this id.
        MailNotSent: the mail server does not accept it.
    """
    work, dependencies = context.work(), context.dependencies
    issued = issued_invoice(work, request.invoice_id)
    if request.link_id in work.state(INVOICE, request.invoice_id).emailed or issued.buyer.erased:
        return
    link = work.state(INVOICE_LINK, request.link_id).issued
    if link is None:
        raise UnknownLink(f"There is no link {request.link_id}; issue it first.")
    token = link_tokens.token(dependencies.link_secret, request.link_id)
    if link_tokens.digest(token) != link.token_sha256:
        raise WrongSetting("TRUNKLINE_LINK_SECRET is not the one that this link was issued with; renew the link.")
    message = mails.invoice_mail(
        issued,
        link_url=f"{dependencies.public_url}/invoices/{token}",
        expires_at=link.expires_at,
        message_id=_message_id(context, request.link_id),
        at=context.now,
    )
    dependencies.mailer.send(message)
    record = RecordInvoiceEmailed(
        at=context.now,
        invoice_id=request.invoice_id,
        link_id=request.link_id,
        receiver_id=issued.receiver_id or billing_of(work, issued.order_id).receiver_id,
        recipient=issued.buyer.email,
        message_id=str(message["Message-ID"]),
    )
    work.do(INVOICE, request.invoice_id, record)
    context.commit(work, issued.account_id)


def _message_id(context: RequestContext, about: str) -> str:
    """Return a Message-ID that stays the same when the mail is sent again, so that mail programs show it once."""
    return f"<{about}@{context.dependencies.mail_from.rpartition('@')[2]}>"


def tell_account_manager(request: TellAccountManager, context: RequestContext) -> None:
    """Mail the account manager an order to collect offline. Does nothing if no offline payment is due any more."""
    work = context.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    if order.placed is None or order.placed.method is not Method.OFFLINE or not order.open:
        return
    account = work.state(ACCOUNT, requested.account_id).require(requested.account_id)
    message = mails.offline_order_mail(
        account,
        requested,
        order.placed,
        sender=context.dependencies.mail_from,
        message_id=_message_id(context, f"placed-{request.order_id}"),
        at=context.now,
    )
    context.dependencies.mailer.send(message)


def mail_credit_note(request: MailCreditNote, context: RequestContext) -> None:
    """Mail a credit note with its document to the billing contact, unless that contact was erased.

    Raises:
        UnknownInvoice: there is no such credit note.
        MailNotSent: the mail server does not accept it.
    """
    credit_note = context.work().state(INVOICE, request.credit_note_id)
    issued = credit_note.issued
    if not isinstance(issued, CreditNoteIssued):
        raise UnknownInvoice(f"There is no credit note {request.credit_note_id}; issue it first.")
    if issued.buyer.erased:
        return
    message = mails.credit_note_mail(
        issued,
        pdf=kept_document(context, credit_note).content,
        message_id=_message_id(context, issued.credit_note_id),
        at=context.now,
    )
    context.dependencies.mailer.send(message)
