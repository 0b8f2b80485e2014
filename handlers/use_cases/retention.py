"""Retention: documents are kept for as long as the law demands, and no longer."""

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

BATCH = 100


def delete_documents(
    owner: Connection[Any],
    dependencies: Dependencies,
    actor: Actor,
    years: int,
    on_progress: Callable[[int, int], object],
) -> int:
    """Delete the bytes of documents whose retention has ended. Returns how many were deleted.

    The log records it first, document by document. After an interruption, the next call finishes what was recorded.

    Args:
        owner: a connection of the owner of the database, in autocommit.
        dependencies: what handlers depend on.
        actor: who asks for it.
        years: whole years for which a document is kept after the year of its issue.
        on_progress: called after each batch, with the number of deleted documents and of all to be deleted.

    Raises:
        NotPermitted: the actor may not ask for this.
    """
    if actor.role not in SELLERS:
        raise NotPermitted(f"{actor} may not delete documents; it takes one of: {', '.join(sorted(SELLERS))}.")
    issued_before = let_go_before(dependencies.clock.now(), years)
    correlation_id = str(uuid4())
    deleted, due = 0, count_kept(owner, issued_before)
    while batch := kept(owner, issued_before, BATCH):
        for document in batch:
            retry_on_conflict(
                record_deletion, document.document_id, years, RequestContext(dependencies, actor, correlation_id)
            )
        delete(owner, [document.sha256 for document in batch])
        deleted += len(batch)
        on_progress(deleted, due)
    return deleted


def record_deletion(document_id: str, years: int, context: RequestContext) -> None:
    """Record that the document of an invoice or credit note is deleted. The caller deletes it right after."""
    work = context.work()
    work.do(INVOICE, document_id, DeleteDocument(at=context.now, invoice_id=document_id, kept_years=years))
    context.commit(work, work.account_of(INVOICE, document_id))
