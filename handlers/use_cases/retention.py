"""How long documents are kept: as long as the law wants them, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from psycopg import Connection

from domain.invoice import INVOICE, DeleteDocument, let_go_before
from handlers.context import SELLERS, Actor, NotPermitted, RequestContext, retry_on_conflict
from handlers.dependencies import Dependencies
from infra.documents.deletion import delete
from projections.billing import count_kept, kept

PAGE = 100


def delete_documents(
    owner: Connection[Any], dependencies: Dependencies, actor: Actor, years: int, told: Callable[[int, int], object]
) -> int:
    """Delete the bytes of documents that had to be kept for so many years, and have been. Gives how many.

    The log says so first, document by document. What is interrupted between the two goes on when it is asked for again.

    Args:
        owner: a connection of the database's owner, in autocommit.
        dependencies: whose documents they are.
        actor: who asks.
        years: how many whole years after that of its issue a document has to be kept.
        told: is told after each page how many were deleted, and how many there are to delete.

    Raises:
        NotPermitted: the actor may not ask for this.
    """
    if actor.role not in SELLERS:
        raise NotPermitted(f"{actor} may not delete documents; it takes one of: {', '.join(sorted(SELLERS))}.")
    issued_before = let_go_before(dependencies.clock.now(), years)
    correlation_id = str(uuid4())
    deleted, due = 0, count_kept(owner, issued_before)
    while page := kept(owner, issued_before, PAGE):
        for document in page:
            retry_on_conflict(give_up, document.document_id, years, RequestContext(dependencies, actor, correlation_id))
        delete(owner, [document.sha256 for document in page])
        deleted += len(page)
        told(deleted, due)
    return deleted


def give_up(document_id: str, years: int, context: RequestContext) -> None:
    """Record that the document of an invoice, or a credit note, is deleted. Only who deletes it then may do so."""
    work = context.work()
    work.do(INVOICE, document_id, DeleteDocument(at=context.now, invoice_id=document_id, kept_years=years))
    context.commit(work, work.account_of(INVOICE, document_id))
