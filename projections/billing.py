"""What was billed, what was paid, and what is owed?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, assert_never

from psycopg import Connection
from psycopg.rows import class_row, scalar_row

from domain.invoice import CreditNoteIssued, InvoiceIssued
from domain.money import round_half_up
from domain.order import (
    ExpansionRequested,
    Method,
    OrderCancelled,
    OrderExpired,
    OrderPlaced,
    PaymentCaptured,
    PaymentRefunded,
    PaymentSetAside,
)
from domain.services import ServiceCode
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Condition, FilterCannotBe, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class BillingDocumentRow(Row):
    """An invoice, or a credit note (whose amounts are negative). ``by_service``: net minor units by service."""

    TABLE: ClassVar = "billing_documents"
    KEY: ClassVar = ("document_id",)
    PARTITION: ClassVar = "order_id"

    document_id: str
    order_id: str
    account_id: str
    kind: str
    number: str
    corrects: str | None
    currency: str
    net_minor: int
    tax_minor: int
    total_minor: int
    by_service: dict[str, int]
    issued_at: datetime
    sha256: str


@dataclass
class PaymentRow(Row):
    """Money that arrived. ``set_aside`` is the reason if it waits for a person."""

    TABLE: ClassVar = "payments"
    KEY: ClassVar = ("order_id", "capture_id")
    PARTITION: ClassVar = "order_id"

    order_id: str
    capture_id: str
    account_id: str
    method: str
    currency: str
    amount_minor: int
    captured_at: datetime
    refunded_minor: int = 0
    set_aside: str | None = None
    explanation: str | None = None


@dataclass
class ReceivableRow(Row):
    """The total of an order; ``owed`` while it is placed offline and its payment is not confirmed."""

    TABLE: ClassVar = "receivables"
    KEY: ClassVar = ("order_id",)
    PARTITION: ClassVar = "order_id"

    order_id: str
    account_id: str
    currency: str
    amount_minor: int
    expires_at: datetime
    owed: bool = False
    pi_number: str | None = None
    owed_since: datetime | None = None


BillingEvent = (
    ExpansionRequested
    | OrderPlaced
    | PaymentCaptured
    | PaymentSetAside
    | OrderCancelled
    | OrderExpired
    | PaymentRefunded
    | InvoiceIssued
    | CreditNoteIssued
)


def fold(rows: Rows, recorded: Recorded[BillingEvent]) -> None:
    """Change the rows of an order by one event."""
    event = recorded.event
    account_id = str(recorded.account_id)
    match event:
        case ExpansionRequested():
            total = event.quote.total
            rows.put(ReceivableRow(event.order_id, account_id, total.currency, total.amount_minor, event.expires_at))
        case OrderPlaced():
            row = _receivable(rows, event.order_id)
            row.owed, row.pi_number = event.method is Method.OFFLINE, event.pi_number
            row.owed_since = event.placed_at if row.owed else None
        case PaymentCaptured() | PaymentSetAside():
            _receivable(rows, event.order_id).owed &= isinstance(event, PaymentSetAside)
            rows.put(_payment(rows, event, account_id))
        case OrderCancelled() | OrderExpired():
            _receivable(rows, event.order_id).owed = False
        case PaymentRefunded():
            payment = rows.get(PaymentRow, event.order_id, event.capture_id)
            assert payment is not None, "a refunded payment was captured"
            payment.refunded_minor += event.amount.amount_minor
        case InvoiceIssued():
            rows.put(_invoice(event))
        case CreditNoteIssued():
            rows.put(_credit_note(rows, event))
        case _:
            assert_never(event)


def _receivable(rows: Rows, order_id: str) -> ReceivableRow:
    row = rows.get(ReceivableRow, order_id)
    assert row is not None, "an order starts with its request"
    return row


def _payment(rows: Rows, event: PaymentCaptured | PaymentSetAside, account_id: str) -> PaymentRow:
    before = rows.get(PaymentRow, event.order_id, event.capture_id)  # captured, and part of it may be refunded
    return PaymentRow(
        order_id=event.order_id,
        capture_id=event.capture_id,
        account_id=account_id,
        method=event.method,
        currency=event.amount.currency,
        amount_minor=event.amount.amount_minor,
        captured_at=event.captured_at,
        refunded_minor=before.refunded_minor if before else 0,
        set_aside=event.reason if isinstance(event, PaymentSetAside) else None,
        explanation=event.explanation if isinstance(event, PaymentSetAside) else None,
    )


def _invoice(event: InvoiceIssued) -> BillingDocumentRow:
    return BillingDocumentRow(
        document_id=event.invoice_id,
        order_id=event.order_id,
        account_id=event.account_id,
        kind="invoice",
        number=event.number,
        corrects=None,
        currency=event.quote.currency,
        net_minor=event.quote.net.amount_minor,
        tax_minor=event.quote.tax.amount_minor,
        total_minor=event.quote.total.amount_minor,
        by_service={line.service: line.amount_minor for line in event.quote.lines},
        issued_at=event.issued_at,
        sha256=event.document.sha256,
    )


def _credit_note(rows: Rows, event: CreditNoteIssued) -> BillingDocumentRow:
    invoice = rows.get(BillingDocumentRow, event.invoice_id)
    assert invoice is not None, "a credit note names an invoice"
    net = event.net.amount_minor
    return BillingDocumentRow(
        document_id=event.credit_note_id,
        order_id=event.order_id,
        account_id=event.account_id,
        kind="credit_note",
        number=event.number,
        corrects=event.invoice_number,
        currency=event.total.currency,
        net_minor=-net,
        tax_minor=net - event.total.amount_minor,
        total_minor=-event.total.amount_minor,
        by_service=_taken_off(net, invoice.by_service),
        issued_at=event.issued_at,
        sha256=event.document.sha256,
    )


def _taken_off(net: int, by_service: dict[str, int]) -> dict[ServiceCode, int]:
    """What ``net`` takes off each service of an invoice: in proportion, and the whole of it.

    In the order of their names, for the order that they were written in is lost in the table.
    """
    whole, upto, shares = sum(by_service.values()), 0, dict[str, int]()
    for service, amount in sorted(by_service.items()):
        upto += amount
        shares[service] = -round_half_up(net * upto, whole) - sum(shares.values())
    return shares


BILLING: Projection[BillingEvent] = Projection(
    name="billing",
    tables=(BillingDocumentRow, PaymentRow, ReceivableRow),
    events=BillingEvent.__args__,
    partition=lambda recorded: recorded.event.order_id,
    fold=fold,
)


def revenue(documents: Iterable[BillingDocumentRow]) -> dict[tuple[str, str, str], int]:
    """Return net revenue in minor units, less credit notes, by month (``2026-03``, UTC), service and currency."""
    totals: Counter[tuple[str, str, str]] = Counter()
    for document in documents:
        for service, net in document.by_service.items():
            totals[f"{document.issued_at.astimezone(UTC):%Y-%m}", service, document.currency] += net
    return dict(totals)


def owed(receivables: Iterable[ReceivableRow], at: datetime) -> list[tuple[ReceivableRow, int]]:
    """Return what is owed offline, oldest first, each with the days since its order was placed."""
    open_ones = sorted((row.owed_since, row.order_id, row) for row in receivables if row.owed and row.owed_since)
    return [(row, (at - since).days) for since, _, row in open_ones]


AGES = ("0-30", "31-60", "61-90", "over 90")
"""Days since the order was placed."""


@dataclass(frozen=True)
class Owed:
    """What is owed offline in a currency, of one age in days."""

    currency: str
    days: str
    orders: int
    amount_minor: int


@dataclass(frozen=True)
class Revenue:
    """Net revenue of a month (``2026-03``, UTC), in minor units, less credit notes."""

    month: str
    service: str
    currency: str
    net_minor: int


def ageing(receivables: Iterable[ReceivableRow], at: datetime) -> list[Owed]:
    """Return what these receivables owe offline, by age."""
    orders, amounts = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row, days in owed(receivables, at):
        key = row.currency, AGES[min(3, max(0, days - 1) // 30)]
        orders[key] += 1
        amounts[key] += row.amount_minor
    return [Owed(*key, orders[key], amounts[key]) for key in sorted(orders, key=lambda k: (k[0], AGES.index(k[1])))]


def owed_by_age(conn: Connection[Any], at: datetime, account_id: str | None = None) -> list[Owed]:
    """Return what an account, or all of them, owe offline, by age."""
    query = (
        "SELECT currency, (%(ages)s::text[])[1 + least(3, greatest(0, extract(day FROM %(at)s - owed_since)::int - 1) "  # noqa: S608 - made of constants
        "/ 30)] AS days, count(*) AS orders, sum(amount_minor)::bigint AS amount_minor "
        "FROM read.receivables WHERE owed AND owed_since IS NOT NULL "
        + ("" if account_id is None else "AND account_id = %(account)s ")
        + "GROUP BY currency, days"
    )
    parameters = {"ages": list(AGES), "at": at, "account": account_id}
    found = conn.cursor(row_factory=class_row(Owed)).execute(query.encode(), parameters)
    return sorted(found, key=lambda line: (line.currency, AGES.index(line.days)))


def owed_orders(
    conn: Connection[Any], account_id: str | None = None, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[ReceivableRow]:
    """Return the orders that are owed offline, oldest first."""
    conditions: list[Condition] = [("owed AND owed_since IS NOT NULL AND %s", True)]
    if account_id is not None:
        conditions.append(("account_id = %s", account_id))
    return page(conn, ReceivableRow, conditions, ("owed_since", "order_id"), cursor=cursor, size=size)


def set_aside(
    conn: Connection[Any], account_id: str | None = None, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[PaymentRow]:
    """Return the payments that wait for a person, oldest first."""
    conditions: list[Condition] = [("set_aside IS NOT NULL AND %s", True)]
    if account_id is not None:
        conditions.append(("account_id = %s", account_id))
    return page(conn, PaymentRow, conditions, ("captured_at", "order_id", "capture_id"), cursor=cursor, size=size)


def documents(
    conn: Connection[Any], account_id: str, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[BillingDocumentRow]:
    """Return the invoices and credit notes of an account, newest first."""
    conditions: list[Condition] = [("account_id = %s", account_id)]
    order = ("issued_at", "document_id")
    return page(conn, BillingDocumentRow, conditions, order, newest_first=True, cursor=cursor, size=size)


def count_kept(owner: Connection[Any], issued_before: datetime) -> int:
    """Return the number of stored documents issued before a time. For the owner of the database."""
    query = f"SELECT count(*) FROM read.billing_documents AS d WHERE {_KEPT}"  # noqa: S608 - made of constants
    (count,) = owner.cursor(row_factory=scalar_row).execute(query.encode(), {"moment": issued_before})
    return int(count)


def kept(owner: Connection[Any], issued_before: datetime, limit: int) -> list[BillingDocumentRow]:
    """Return at most ``limit`` of them, oldest first."""
    query = f"SELECT d.* FROM read.billing_documents AS d WHERE {_KEPT} ORDER BY issued_at, document_id LIMIT %(limit)s"  # noqa: S608 - as above
    cursor = owner.cursor(row_factory=class_row(BillingDocumentRow))
    return cursor.execute(query.encode(), {"moment": issued_before, "limit": limit}).fetchall()


_KEPT = "issued_at < %(moment)s AND EXISTS (SELECT FROM log.documents AS k WHERE k.sha256 = d.sha256)"


def revenue_by_month(
    conn: Connection[Any], begin: datetime, end: datetime, account_id: str | None = None
) -> list[Revenue]:
    """Return net revenue by month, service and currency, of documents issued from ``begin`` to before ``end``.

    Raises:
        FilterCannotBe: there is no time between the two.
    """
    if begin >= end:
        raise FilterCannotBe(f"There is no revenue from {begin:%F} on and before {end:%F}.")
    query = (
        "SELECT to_char(issued_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, line.key AS service, currency, "
        "sum(line.value::bigint)::bigint AS net_minor "
        "FROM read.billing_documents, jsonb_each_text(by_service) AS line "
        "WHERE issued_at >= %(begin)s AND issued_at < %(end)s "
        + ("" if account_id is None else "AND account_id = %(account)s ")
        + "GROUP BY month, service, currency ORDER BY month, service, currency"
    )
    parameters = {"begin": begin, "end": end, "account": account_id}
    return conn.cursor(row_factory=class_row(Revenue)).execute(query.encode(), parameters).fetchall()
