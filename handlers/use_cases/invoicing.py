"""The invoice and its link, the mail that carries it, and credit notes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from uuid import UUID, uuid5

from domain.account import ACCOUNT, BillingContact
from domain.invoice import (
    INVOICE,
    CreditNoteIssued,
    Document,
    Invoice,
    InvoiceIssued,
    IssueCreditNote,
    IssueInvoice,
    NoDocument,
    RecordInvoiceEmailed,
    UnknownInvoice,
    credit_of,
)
from domain.invoice_link import INVOICE_LINK, ConsumeLink, IssueLink, LinkConsumed, RevokeLink, UnknownLink
from domain.messages import Refusal
from domain.order import ORDER, BillingContactChosen, Method, Status
from handlers.context import Desk
from handlers.numbering import Turn
from handlers.requests import (
    CreditRefund,
    InvoiceFulfilledOrder,
    MailCreditNote,
    MailInvoiceLink,
    RenewInvoiceLink,
    TellAccountManager,
    UseInvoiceLink,
)
from infra import link_tokens
from infra.documents.typst_invoice import CreditNoteDraft, InvoiceDraft, kept, render_credit_note, render_invoice
from infra.event_log.recorder import Kept
from infra.event_log.unit_of_work import UnitOfWork
from infra.mail import messages as mails
from infra.settings import WrongSetting

DOCUMENT_IDS = UUID("3d0b4c1e-2f0a-5a8e-8a44-1f4b6f6f2c77")


class NotFulfilled(Refusal):
    """The order has not been fulfilled."""


def invoice_id_of(order_id: str) -> str:
    """The id of an order's invoice; it follows from the order, so an order has one."""
    return str(uuid5(DOCUMENT_IDS, f"invoice/{order_id}"))


def credit_note_id_of(order_id: str, refund_id: str) -> str:
    """The id of a refund's credit note."""
    return str(uuid5(DOCUMENT_IDS, f"credit note/{order_id}/{refund_id}"))


def invoice_fulfilled_order(request: InvoiceFulfilledOrder, desk: Desk) -> None:
    """Issue the invoice of a fulfilled order: number, document and first link in one commit.

    Raises:
        NotFulfilled: nothing was granted that could be invoiced.
    """
    work = desk.work(trusting=True)
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    invoice_id = invoice_id_of(request.order_id)
    if work.state(INVOICE, invoice_id).issued:
        return
    if not order.fulfilled:
        raise NotFulfilled(f"The order is {order.status}; it is invoiced once it is fulfilled.")
    assert order.captured, "what is fulfilled was paid"
    billing = _billing(work, request.order_id)
    assert order.placed, "what is paid was placed"
    with _turn(work, desk, invoice_id) as turn:
        draft = InvoiceDraft(
            at=turn.at,
            invoice_id=invoice_id,
            number=turn.number,
            account_id=requested.account_id,
            order_id=request.order_id,
            package_id=requested.package_id,
            seller=desk.house.seller,
            receiver_id=billing.receiver_id,
            buyer=_buyer(work, requested.account_id, billing.contact),
            quote=requested.quote,
            method=order.captured.method,
            capture_id=order.captured.capture_id,
            pi_number=order.placed.pi_number,
            paid_at=order.captured.captured_at,
        )
        document = _kept(work, render_invoice(draft))
        work.do(INVOICE, invoice_id, IssueInvoice(**dict(draft), document=document))
        work.begin(INVOICE_LINK, link_tokens.link_id(invoice_id, 1))
        _issue_link(work, desk, invoice_id, request.order_id, ordinal=1)
        turn.wait()
        desk.commit(work, requested.account_id)


def _billing(work: UnitOfWork, order_id: str) -> BillingContactChosen:
    billing = work.state(ORDER, order_id).billing
    assert billing, "what is placed names its billing contact"
    return billing


def _buyer(work: UnitOfWork, account_id: str, contact: BillingContact) -> BillingContact:
    """Whom a document names. Where the contact was erased, the company alone: it is the one that bought."""
    if not contact.erased:
        return contact
    account = work.state(ACCOUNT, account_id).require(account_id)
    return contact.model_copy(update={"company": account.name, "country": account.country})


def _turn(work: UnitOfWork, desk: Desk, document_id: str) -> AbstractContextManager[Turn]:
    return desk.house.numbering.turn(work, desk.house.clock, desk.house.seller.code, document_id)


def _kept(work: UnitOfWork, pdf: bytes) -> Document:
    document = kept(pdf)
    work.keep(Kept(document.sha256, document.media_type, pdf))
    return document


def _issue_link(work: UnitOfWork, desk: Desk, invoice_id: str, order_id: str, ordinal: int) -> None:
    link_id = link_tokens.link_id(invoice_id, ordinal)
    issue = IssueLink(
        at=desk.now,
        link_id=link_id,
        invoice_id=invoice_id,
        order_id=order_id,
        ordinal=ordinal,
        token_sha256=link_tokens.digest(link_tokens.token(desk.house.link_secret, link_id)),
        expires_at=desk.now + desk.house.link_life,
    )
    work.do(INVOICE_LINK, link_id, issue)


def renew_invoice_link(request: RenewInvoiceLink, desk: Desk) -> None:
    """Issue a new link, and revoke the one before it.

    Raises:
        NoDocument: there is nothing any more that it could lead to.
    """
    work = desk.work()
    issued = _issued_invoice(work, request.invoice_id)
    if work.state(INVOICE, request.invoice_id).deleted:
        raise _no_document(issued)
    ordinal = 1
    while work.state(INVOICE_LINK, link_tokens.link_id(request.invoice_id, ordinal)).issued:
        ordinal += 1
    last = link_tokens.link_id(request.invoice_id, ordinal - 1)
    newer = link_tokens.link_id(request.invoice_id, ordinal)
    work.do(INVOICE_LINK, last, RevokeLink(at=desk.now, link_id=last, replaced_by=newer))
    _issue_link(work, desk, request.invoice_id, issued.order_id, ordinal)
    desk.commit(work, issued.account_id)


def _issued_invoice(work: UnitOfWork, invoice_id: str) -> InvoiceIssued:
    issued = work.state(INVOICE, invoice_id).issued
    if not isinstance(issued, InvoiceIssued):
        raise UnknownInvoice(f"There is no invoice {invoice_id}; name one that was issued.")
    return issued


def mail_invoice_link(request: MailInvoiceLink, desk: Desk) -> None:
    """Mail the order summary and the link; recorded once the mail server has taken it, and then never sent again.

    Nothing, where the contact was erased: the invoice is on the portal.

    Raises:
        UnknownInvoice, UnknownLink: there is none with this id.
        MailNotSent: the mail server does not take it.
    """
    work, house = desk.work(), desk.house
    issued = _issued_invoice(work, request.invoice_id)
    if request.link_id in work.state(INVOICE, request.invoice_id).emailed or issued.buyer.erased:
        return
    link = work.state(INVOICE_LINK, request.link_id).issued
    if link is None:
        raise UnknownLink(f"There is no link {request.link_id}; issue it first.")
    token = link_tokens.token(house.link_secret, request.link_id)
    if link_tokens.digest(token) != link.token_sha256:
        raise WrongSetting("TRUNKLINE_LINK_SECRET is not the one that this link was issued with; renew the link.")
    message = mails.invoice_mail(
        issued,
        link_url=f"{house.public_url}/invoices/{token}",
        expires_at=link.expires_at,
        message_id=_message_id(desk, request.link_id),
        at=desk.now,
    )
    house.mailer.send(message)
    record = RecordInvoiceEmailed(
        at=desk.now,
        invoice_id=request.invoice_id,
        link_id=request.link_id,
        receiver_id=issued.receiver_id or _billing(work, issued.order_id).receiver_id,
        recipient=issued.buyer.email,
        message_id=str(message["Message-ID"]),
    )
    work.do(INVOICE, request.invoice_id, record)
    desk.commit(work, issued.account_id)


def _message_id(desk: Desk, about: str) -> str:
    """The same message keeps its id when it has to be sent again, so that mail programs show it once."""
    return f"<{about}@{desk.house.mail_from.rpartition('@')[2]}>"


def tell_account_manager(request: TellAccountManager, desk: Desk) -> None:
    """Tell whoever collects offline payments; nothing, where there is none to collect, or none any more."""
    work = desk.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    if order.placed is None or order.placed.method is not Method.OFFLINE or not order.open:
        return
    account = work.state(ACCOUNT, requested.account_id).require(requested.account_id)
    message = mails.offline_order_mail(
        account,
        requested,
        order.placed,
        sender=desk.house.mail_from,
        message_id=_message_id(desk, f"placed-{request.order_id}"),
        at=desk.now,
    )
    desk.house.mailer.send(message)


def use_invoice_link(request: UseInvoiceLink, desk: Desk) -> Kept:
    """The invoice behind a link, once. Every attempt with a link of ours is recorded.

    Raises:
        UnknownLink: the link is not, or no longer, valid. It says the same of every such link.
    """
    work = desk.work()
    link_id = link_tokens.link_of(request.token)
    spent = UnknownLink("This link is not valid, or was used already; ask for a new one.")
    if link_id is None:
        raise spent
    link = work.state(INVOICE_LINK, link_id)
    use = ConsumeLink(at=desk.now, link_id=link_id, token_sha256=link_tokens.digest(request.token))
    try:
        (attempt,) = work.do(INVOICE_LINK, link_id, use)
    except UnknownLink:
        raise spent from None
    document = None
    if isinstance(attempt, LinkConsumed):  # the document first: a link is not used up by one that cannot be read
        assert link.issued, "what is consumed was issued"
        document = kept_document(desk, work.state(INVOICE, link.issued.invoice_id))
    desk.commit(work, work.account_of(INVOICE_LINK, link_id))
    if document is None:
        raise spent
    return document


def kept_document(desk: Desk, invoice: Invoice) -> Kept:
    """The bytes that were issued: not rendered again, for that would be no evidence.

    Raises:
        NoDocument: they were deleted, in their time.
    """
    assert invoice.issued, "what has a link, or a mail, was issued"
    if invoice.deleted:
        raise _no_document(invoice.issued)
    document = desk.house.log.document(invoice.issued.document.sha256)
    assert document, "a document is kept in the commit of its issue"
    return document


def _no_document(issued: InvoiceIssued | CreditNoteIssued) -> NoDocument:
    return NoDocument(f"The document of {issued.number} was deleted: it had to be kept no longer.")


def credit_refund(request: CreditRefund, desk: Desk) -> None:
    """Issue the credit note of a refund. Nothing, where there will be no invoice that it could correct.

    Raises:
        UnknownInvoice: the invoice has not been issued yet; ask again later.
    """
    work = desk.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    refunded = order.refund(request.refund_id)
    invoice_id = invoice_id_of(request.order_id)
    invoice = work.state(INVOICE, invoice_id).issued
    credit_note_id = credit_note_id_of(request.order_id, request.refund_id)
    if work.state(INVOICE, credit_note_id).issued:
        return
    if not isinstance(invoice, InvoiceIssued):
        if not order.fulfilled and (order.unfulfillable or order.status is Status.REFUNDED):
            return
        raise UnknownInvoice(f"There is no invoice {invoice_id} that a credit note could correct; issue it first.")
    net, taxes = credit_of(invoice.quote, refunded.amount)
    with _turn(work, desk, credit_note_id) as turn:
        draft = CreditNoteDraft(
            at=turn.at,
            credit_note_id=credit_note_id,
            number=turn.number,
            invoice_id=invoice_id,
            invoice_number=invoice.number,
            account_id=requested.account_id,
            order_id=request.order_id,
            refund_id=request.refund_id,
            seller=desk.house.seller,
            receiver_id=_billing(work, request.order_id).receiver_id,
            buyer=_buyer(work, requested.account_id, invoice.buyer),
            net=net,
            taxes=taxes,
            total=refunded.amount,
            refunded_at=refunded.refunded_at,
        )
        document = _kept(work, render_credit_note(draft))
        work.do(INVOICE, credit_note_id, IssueCreditNote(**dict(draft), document=document))
        turn.wait()
        desk.commit(work, requested.account_id)


def mail_credit_note(request: MailCreditNote, desk: Desk) -> None:
    """Mail a credit note, with its document, to the billing contact; to nobody, where that one was erased.

    Raises:
        UnknownInvoice: there is no such credit note.
        MailNotSent: the mail server does not take it.
    """
    credit_note = desk.work().state(INVOICE, request.credit_note_id)
    issued = credit_note.issued
    if not isinstance(issued, CreditNoteIssued):
        raise UnknownInvoice(f"There is no credit note {request.credit_note_id}; issue it first.")
    if issued.buyer.erased:
        return
    message = mails.credit_note_mail(
        issued,
        pdf=kept_document(desk, credit_note).content,
        message_id=_message_id(desk, issued.credit_note_id),
        at=desk.now,
    )
    desk.house.mailer.send(message)
