"""What is the state of every order: its lines, totals, payment and invoice?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never

from psycopg import Connection
from psycopg.rows import DictRow

from domain.invoice import InvoiceIssued
from domain.order import (
    BillingContactChosen,
    ExpansionRequested,
    Method,
    OrderCancelled,
    OrderEvent,
    OrderExpired,
    OrderFulfilled,
    OrderPlaced,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentSetAside,
    Status,
)
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Condition, FilterCannotBe, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class OrderRow(Row):
    """An order. Amounts are in minor units; ``attention`` is the reason why a person has to look at it."""

    TABLE: ClassVar = "orders"
    KEY: ClassVar = ("order_id",)
    PARTITION: ClassVar = "order_id"

    order_id: str
    account_id: str
    package_id: str
    state: str
    currency: str
    net_minor: int
    tax_minor: int
    total_minor: int
    lines: list[dict[str, Any]]
    requested_at: datetime
    expires_at: datetime
    refunded_minor: int = 0
    method: str | None = None
    pi_number: str | None = None
    receiver_id: str | None = None
    capture_id: str | None = None
    attention: str | None = None
    invoice_id: str | None = None
    invoice_number: str | None = None
    placed_at: datetime | None = None
    paid_at: datetime | None = None
    fulfilled_at: datetime | None = None


OrderRowEvent = OrderEvent | InvoiceIssued


def fold(rows: Rows, recorded: Recorded[OrderRowEvent]) -> None:
    """Change the row of an order by one event."""
    event = recorded.event
    if isinstance(event, ExpansionRequested):
        rows.put(_requested(event))
        return
    row = rows.get(OrderRow, event.order_id)
    assert row is not None, "an order starts with its request"
    match event:
        case BillingContactChosen():
            row.receiver_id = event.receiver_id
        case OrderPlaced():
            row.state, row.method, row.pi_number = Status.PLACED, event.method, event.pi_number
            row.placed_at = event.placed_at
        case PaymentCaptured():
            row.state, row.capture_id, row.paid_at = Status.PAID, event.capture_id, event.captured_at
        case PaymentDeclined():
            row.state = Status.DECLINED
        case PaymentSetAside():
            row.attention = event.reason
        case OrderFulfilled():
            row.fulfilled_at = event.fulfilled_at
            row.state = Status.FULFILLED if row.state == Status.PAID else row.state
        case OrderCancelled():
            row.state = Status.CANCELLED
        case OrderExpired():
            row.state = Status.EXPIRED
        case PaymentRefunded():
            row.refunded_minor += event.amount.amount_minor
            whole = row.refunded_minor == row.total_minor
            row.state = Status.REFUNDED if whole else Status.PARTLY_REFUNDED
        case InvoiceIssued():
            row.invoice_id, row.invoice_number = event.invoice_id, event.number
        case _:
            assert_never(event)


def _requested(event: ExpansionRequested) -> OrderRow:
    quote = event.quote
    return OrderRow(
        order_id=event.order_id,
        account_id=event.account_id,
        package_id=event.package_id,
        state=Status.REQUESTED,
        currency=quote.currency,
        net_minor=quote.net.amount_minor,
        tax_minor=quote.tax.amount_minor,
        total_minor=quote.total.amount_minor,
        lines=[line.model_dump(mode="json") for line in quote.lines],
        requested_at=event.requested_at,
        expires_at=event.expires_at,
    )


ORDERS: Projection[OrderRowEvent] = Projection(
    name="orders",
    tables=(OrderRow,),
    events=OrderRowEvent.__args__,
    partition=lambda recorded: recorded.event.order_id,
    fold=fold,
)


def unpaid_in_time(conn: Connection[DictRow], at: datetime) -> list[str]:
    """Return the ids of orders that are open although their time to pay is over."""
    open_states = [Status.REQUESTED, Status.PLACED, Status.DECLINED]
    found = conn.execute(
        "SELECT order_id FROM read.orders WHERE state = ANY(%s) AND expires_at <= %s ORDER BY expires_at",
        (open_states, at),
    )
    return [row["order_id"] for row in found]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for orders that meet all given conditions. Amounts are totals, in minor units.

    ``requested_from`` counts in, ``requested_before`` does not.

    Raises:
        FilterCannotBe: no order can meet it.
    """

    account_id: str | None = None
    state: str | None = None
    method: str | None = None
    pi_number: str | None = None
    currency: str | None = None
    at_least_minor: int | None = None
    at_most_minor: int | None = None
    requested_from: datetime | None = None
    requested_before: datetime | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in set(Status):
            raise FilterCannotBe(f"{self.state!r} is not a state of an order; the states are {', '.join(Status)}.")
        if self.method is not None and self.method not in set(Method):
            raise FilterCannotBe(f"{self.method!r} is not a payment method; the methods are {', '.join(Method)}.")
        least, most = self.at_least_minor, self.at_most_minor
        if (least is not None or most is not None) and self.currency is None:
            raise FilterCannotBe("An amount needs its currency; add it, as in EUR.")
        if (most is not None and most < max(least or 0, 0)) or (least is not None and least < 0):
            raise FilterCannotBe(f"No amount is at least {least or 0} and at most {most}.")
        begin, end = self.requested_from, self.requested_before
        if any(moment is not None and moment.tzinfo is None for moment in (begin, end)):
            raise FilterCannotBe("A time needs its UTC offset, as in 2026-09-01T00:00:00+00:00.")
        if begin is not None and end is not None and begin >= end:
            raise FilterCannotBe(f"Nothing is requested from {begin:%F %T} on and before {end:%F %T}.")

    def conditions(self) -> list[Condition]:
        """Return the conditions of the query."""
        every: list[Condition] = [
            ("account_id = %s", self.account_id),
            ("state = %s", self.state),
            ("method = %s", self.method),
            ("pi_number = %s", None if self.pi_number is None else self.pi_number.upper()),
            ("currency = %s", self.currency),
            ("total_minor >= %s", self.at_least_minor),
            ("total_minor <= %s", self.at_most_minor),
            ("requested_at >= %s", self.requested_from),
            ("requested_at < %s", self.requested_before),
        ]
        return [(text, value) for text, value in every if value is not None]


def search(conn: Connection[Any], wanted: Search, cursor: str | None = None, size: int = PAGE_SIZE) -> Page[OrderRow]:
    """Return the orders that match a search, newest first."""
    order = ("requested_at", "order_id")
    return page(conn, OrderRow, wanted.conditions(), order, newest_first=True, cursor=cursor, size=size)


def orders_by_state(conn: Connection[DictRow]) -> dict[str, int]:
    """Return the number of orders in each state."""
    found = conn.execute("SELECT state, count(*) AS orders FROM read.orders GROUP BY state ORDER BY state")
    return {row["state"]: row["orders"] for row in found}
