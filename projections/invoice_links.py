"""What happened to each invoice link, at every attempt?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never

from psycopg import Connection

from domain.invoice import InvoiceEmailed
from domain.invoice_link import LinkConsumed, LinkIssued, LinkRefused, LinkRevoked
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Condition, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class InvoiceLinkRow(Row):
    """A link: ``issued``, then ``consumed`` or ``revoked``. Readers compare ``expires_at`` with their clock."""

    TABLE: ClassVar = "invoice_links"
    KEY: ClassVar = ("link_id",)
    PARTITION: ClassVar = "link_id"

    link_id: str
    invoice_id: str
    order_id: str
    account_id: str
    ordinal: int
    state: str
    issued_at: datetime
    expires_at: datetime
    emailed_at: datetime | None = None
    consumed_at: datetime | None = None


@dataclass
class InvoiceLinkAttemptRow(Row):
    """One attempt to use a link: ``consumed``, or the reason of its refusal."""

    TABLE: ClassVar = "invoice_link_attempts"
    KEY: ClassVar = ("link_id", "position")
    PARTITION: ClassVar = "link_id"

    link_id: str
    position: int
    account_id: str
    outcome: str
    at: datetime


InvoiceLinkRowEvent = LinkIssued | LinkConsumed | LinkRefused | LinkRevoked | InvoiceEmailed


def fold(rows: Rows, recorded: Recorded[InvoiceLinkRowEvent]) -> None:
    """Change the rows of a link by one event."""
    event = recorded.event
    account_id = str(recorded.account_id)
    if isinstance(event, LinkIssued):
        rows.put(
            InvoiceLinkRow(
                link_id=event.link_id,
                invoice_id=event.invoice_id,
                order_id=event.order_id,
                account_id=account_id,
                ordinal=event.ordinal,
                state="issued",
                issued_at=recorded.recorded_at,
                expires_at=event.expires_at,
            )
        )
        return
    link = rows.get(InvoiceLinkRow, event.link_id)
    assert link is not None, "a link starts with its issue"
    match event:
        case LinkConsumed():
            link.state, link.consumed_at = "consumed", event.consumed_at
            rows.put(InvoiceLinkAttemptRow(event.link_id, recorded.position, account_id, "consumed", event.consumed_at))
        case LinkRefused():
            rows.put(
                InvoiceLinkAttemptRow(event.link_id, recorded.position, account_id, event.reason, event.refused_at)
            )
        case LinkRevoked():
            link.state = "revoked"
        case InvoiceEmailed():
            link.emailed_at = event.emailed_at
        case _:
            assert_never(event)


INVOICE_LINKS: Projection[InvoiceLinkRowEvent] = Projection(
    name="invoice_links",
    tables=(InvoiceLinkRow, InvoiceLinkAttemptRow),
    events=InvoiceLinkRowEvent.__args__,
    partition=lambda recorded: recorded.event.link_id,
    fold=fold,
)


def links(
    conn: Connection[Any], account_id: str, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[InvoiceLinkRow]:
    """Return the links of an account, newest first."""
    conditions: list[Condition] = [("account_id = %s", account_id)]
    order = ("issued_at", "link_id")
    return page(conn, InvoiceLinkRow, conditions, order, newest_first=True, cursor=cursor, size=size)


def attempts(
    conn: Connection[Any], account_id: str, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[InvoiceLinkAttemptRow]:
    """Return every attempt to use a link of an account, newest first."""
    conditions: list[Condition] = [("account_id = %s", account_id)]
    order = ("position", "link_id")
    return page(conn, InvoiceLinkAttemptRow, conditions, order, newest_first=True, cursor=cursor, size=size)
