"""Read models on the console: the columns that people want to see, now or as of a time or position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.table import Table

from domain.money import Money
from domain.quote import Quote
from handlers.cli.as_of import position_as_of
from infra.currencies import format_money, format_rate
from infra.event_log.log import Log
from infra.postgres.connections import connect
from projections.allocations import ALLOCATIONS, AllocationRow
from projections.billing import BILLING, BillingDocumentRow, PaymentRow, ReceivableRow
from projections.engine.poison import skipped_positions
from projections.engine.projection import Projection
from projections.engine.rows import Row, stored
from projections.entitlements import ENTITLEMENTS, EntitlementRow, entitlements
from projections.invoice_links import INVOICE_LINKS, InvoiceLinkAttemptRow, InvoiceLinkRow
from projections.orders import ORDERS, OrderRow
from projections.timeline import TIMELINE, TimelineRow


def _entitlements(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(entitlement) for entitlement in entitlements(rows)]


def _as_stored(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


@dataclass(frozen=True)
class View:
    """A table of a read model: its projection, and the columns that people want to see."""

    projection: Projection
    table: type[Row]
    columns: tuple[str, ...]
    answer: Callable[[Sequence[Any]], list[dict[str, Any]]] = _as_stored


VIEWS: Mapping[str, View] = {
    "entitlements": View(
        ENTITLEMENTS,
        EntitlementRow,
        ("package_id", "service", "total", "allocated", "available", "over_allocated", "valid_until"),
        _entitlements,
    ),
    "allocations": View(
        ALLOCATIONS, AllocationRow, ("package_id", "pbx_id", "pbx_name", "plan", "service", "assigned", "drawn")
    ),
    "orders": View(
        ORDERS,
        OrderRow,
        (
            "order_id",
            "state",
            "method",
            "pi_number",
            "total_minor",
            "currency",
            "requested_at",
            "invoice_number",
            "attention",
        ),
    ),
    "billing": View(
        BILLING,
        BillingDocumentRow,
        ("number", "kind", "order_id", "corrects", "net_minor", "tax_minor", "total_minor", "currency", "issued_at"),
    ),
    "payments": View(
        BILLING,
        PaymentRow,
        ("order_id", "capture_id", "method", "amount_minor", "currency", "captured_at", "set_aside"),
    ),
    "receivables": View(
        BILLING,
        ReceivableRow,
        ("order_id", "amount_minor", "currency", "owed", "owed_since", "pi_number", "expires_at"),
    ),
    "links": View(
        INVOICE_LINKS,
        InvoiceLinkRow,
        ("link_id", "order_id", "ordinal", "state", "issued_at", "expires_at", "emailed_at", "consumed_at"),
    ),
    "attempts": View(INVOICE_LINKS, InvoiceLinkAttemptRow, ("link_id", "position", "outcome", "at")),
    "timeline": View(TIMELINE, TimelineRow, ("position", "recorded_at", "topic", "stream", "version", "actor")),
}


def shown(view: View, account_id: str, log: Log, database_url: str, as_of: str | None) -> list[dict[str, Any]]:
    """Return the rows of a view for an account, now or as of a position or time.

    Raises:
        UnknownPosition: ``as_of`` is neither a position that the log has reached nor a time.
    """
    with connect(database_url) as conn:
        if as_of is None:
            return view.answer(stored(conn, view.table, account_id=account_id))
        left_out = skipped_positions(conn, view.projection.name)
    rows = view.projection.as_of(log, account_id, position_as_of(log, as_of), left_out)
    return view.answer(sorted(rows.of(view.table), key=lambda row: row.key()))


def table(columns: Sequence[str], answer: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows as a table; amounts as money, times to the second."""
    drawn = Table()
    for column in columns:
        number = bool(answer) and all(isinstance(line[column], int) for line in answer)
        drawn.add_column(column.removesuffix("_minor"), justify="right" if number else "left", overflow="fold")
    for line in answer:
        drawn.add_row(*(_cell(column, line) for column in columns))
    return drawn


def _cell(column: str, line: Mapping[str, Any]) -> str:
    value = line[column]
    if value is None:
        return ""
    if column.endswith("_minor"):
        return format_money(Money(amount_minor=value, currency=line["currency"]))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def summary_table(quote: Quote) -> Table:
    """Return an order summary as a table."""
    drawn = Table(title="Order summary", title_justify="left", show_footer=True)
    drawn.add_column("service", footer="to pay")
    drawn.add_column("quantity", justify="right")
    drawn.add_column("unit price", justify="right")
    drawn.add_column("days", justify="right")
    drawn.add_column("amount", justify="right", footer=format_money(quote.total))
    for line in quote.lines:
        days = "one-time" if line.one_time else f"{line.days_remaining} of {line.days_of_term}"
        price, amount = (_money(minor, quote) for minor in (line.unit_price_minor, line.amount_minor))
        drawn.add_row(line.title, f"{line.quantity:,}", price, days, amount)
    for tax in quote.taxes:
        drawn.add_row(
            f"tax {format_rate(tax.rate_bp)} on {_money(tax.net_minor, quote)}",
            "",
            "",
            "",
            _money(tax.tax_minor, quote),
        )
    return drawn


def _money(minor: int, quote: Quote) -> str:
    return format_money(Money(amount_minor=minor, currency=quote.currency))
