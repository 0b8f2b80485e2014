"""Links to invoices: issued, renewed, and used once."""

from __future__ import annotations

from domain.invoice import (
    INVOICE,
)
from domain.invoice_link import INVOICE_LINK, ConsumeLink, IssueLink, LinkConsumed, RevokeLink, UnknownLink
from handlers.context import RequestContext
from handlers.requests import (
    RenewInvoiceLink,
    UseInvoiceLink,
)
from handlers.use_cases.documents import issued_invoice, kept_document, no_document
from infra import link_tokens
from infra.event_log.recorder import StoredDocument
from infra.event_log.unit_of_work import UnitOfWork


def issue_link(work: UnitOfWork, context: RequestContext, invoice_id: str, order_id: str, ordinal: int) -> None:
    """Issue a link to an invoice in a unit of work. ``ordinal`` counts the links of the invoice, from 1."""
    link_id = link_tokens.link_id(invoice_id, ordinal)
    issue = IssueLink(
        at=context.now,
        link_id=link_id,
        invoice_id=invoice_id,
        order_id=order_id,
        ordinal=ordinal,
        token_sha256=link_tokens.digest(link_tokens.token(context.dependencies.link_secret, link_id)),
        expires_at=context.now + context.dependencies.link_life,
    )
    work.do(INVOICE_LINK, link_id, issue)


def renew_invoice_link(request: RenewInvoiceLink, context: RequestContext) -> None:
    """Issue a new link, and revoke the one before it.

    Raises:
        NoDocument: the document of the invoice was deleted.
    """
    work = context.work()
    issued = issued_invoice(work, request.invoice_id)
    if work.state(INVOICE, request.invoice_id).deleted:
        raise no_document(issued)
    ordinal = 1
    while work.state(INVOICE_LINK, link_tokens.link_id(request.invoice_id, ordinal)).issued:
        ordinal += 1
    last = link_tokens.link_id(request.invoice_id, ordinal - 1)
    newer = link_tokens.link_id(request.invoice_id, ordinal)
    work.do(INVOICE_LINK, last, RevokeLink(at=context.now, link_id=last, replaced_by=newer))
    issue_link(work, context, request.invoice_id, issued.order_id, ordinal)
    context.commit(work, issued.account_id)


def use_invoice_link(request: UseInvoiceLink, context: RequestContext) -> StoredDocument:
    """Return the document of a link, once. Every attempt with a link of ours is recorded.

    Raises:
        UnknownLink: the link is not valid, or no longer. The text is the same for every such link.
    """
    work = context.work()
    link_id = link_tokens.link_of(request.token)
    spent = UnknownLink("This link is not valid, or was used already; ask for a new one.")
    if link_id is None:
        raise spent
    link = work.state(INVOICE_LINK, link_id)
    use = ConsumeLink(at=context.now, link_id=link_id, token_sha256=link_tokens.digest(request.token))
    try:
        (attempt,) = work.do(INVOICE_LINK, link_id, use)
    except UnknownLink:
        raise spent from None
    document = None
    if isinstance(attempt, LinkConsumed):  # the document first: one that cannot be read does not use up its link
        assert link.issued, "a consumed link was issued"
        document = kept_document(context, work.state(INVOICE, link.issued.invoice_id))
    context.commit(work, work.account_of(INVOICE_LINK, link_id))
    if document is None:
        raise spent
    return document
