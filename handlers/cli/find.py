"""``trunkline find``: questions over all accounts, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg import Connection

from handlers.cli.console import AsJson, Data, draw, print_json, say
from handlers.cli.session import catch_up, opened_log
from handlers.cli.views import VIEWS, table
from infra.clock import SystemClock
from infra.postgres.connections import connect
from projections.billing import owed_by_age, owed_orders, revenue_by_month, set_aside
from projections.engine.pages import PAGE_SIZE, FilterCannotBe, Page
from projections.entitlements import over_allocated
from projections.orders import Search, search

app = typer.Typer(no_args_is_help=True, help="Questions over all accounts, a page at a time.")

Account = Annotated[str | None, typer.Option(help="Only of this account.")]
Cursor = Annotated[str | None, typer.Option(help="The cursor that the previous page printed.")]
Size = Annotated[int, typer.Option(help="Rows in a page.")]
Day = Annotated[str | None, typer.Option(help="A day, or a time with its UTC offset.")]


@contextmanager
def _tables(data: Path | None) -> Iterator[Connection[Any]]:
    with opened_log(data) as opened:
        catch_up(opened)
        with connect(opened.database_url) as conn:
            yield conn


@app.command()
def orders(  # noqa: PLR0913, PLR0917 - each is a thing to look for
    account: Account = None,
    state: str | None = None,
    method: str | None = None,
    pi_number: str | None = None,
    currency: str | None = None,
    at_least: Annotated[int | None, typer.Option(help="In minor units of the currency.")] = None,
    at_most: Annotated[int | None, typer.Option(help="In minor units of the currency.")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="A day, or a time with its UTC offset.")] = None,
    before: Day = None,
    cursor: Cursor = None,
    size: Size = PAGE_SIZE,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """List orders by account, state, method, date, PI number and amount, newest first."""
    wanted = Search(
        account_id=account,
        state=state,
        method=method,
        pi_number=pi_number,
        currency=currency,
        at_least_minor=at_least,
        at_most_minor=at_most,
        requested_from=_moment(begin),
        requested_before=_moment(before),
    )
    with _tables(data) as conn:
        _print_page(search(conn, wanted, cursor, size), ("account_id", *VIEWS["orders"].columns), as_json)


@app.command()
def owed(
    account: Account = None, cursor: Cursor = None, size: Size = PAGE_SIZE, data: Data = None, as_json: AsJson = False
) -> None:
    """List what is owed offline, oldest first, and by age in days: 0-30, 31-60, 61-90, over 90."""
    with _tables(data) as conn:
        by_age = owed_by_age(conn, SystemClock().now(), account)
        page = owed_orders(conn, account, cursor, size)
    if as_json:
        print_json({"by_age": by_age, "rows": page.rows, "next": page.next})
        return
    _print_table([asdict(line) for line in by_age], ("currency", "days", "orders", "amount_minor"))
    _print_page(page, ("account_id", *VIEWS["receivables"].columns), as_json)


@app.command("set-aside")
def payments_set_aside(
    account: Account = None, cursor: Cursor = None, size: Size = PAGE_SIZE, data: Data = None, as_json: AsJson = False
) -> None:
    """List payments that were set aside and wait for a person, oldest first."""
    with _tables(data) as conn:
        page = set_aside(conn, account, cursor, size)
    _print_page(page, ("account_id", *VIEWS["payments"].columns), as_json)


@app.command("over-allocated")
def services_over_allocated(
    cursor: Cursor = None, size: Size = PAGE_SIZE, data: Data = None, as_json: AsJson = False
) -> None:
    """List services of which PBXs hold more than the package has, after a refund."""
    with _tables(data) as conn:
        page = over_allocated(conn, cursor, size)
    _print_page(page, ("account_id", "package_id", "service", "total", "allocated", "over_allocated"), as_json)


@app.command()
def revenue(
    begin: Annotated[str, typer.Option("--from", help="A day, or a time with its UTC offset.")],
    before: Annotated[str, typer.Option(help="A day, or a time with its UTC offset.")],
    account: Account = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show net revenue by month, service and currency, less credit notes."""
    first, last = _moment(begin), _moment(before)
    assert first is not None
    assert last is not None
    with _tables(data) as conn:
        lines = revenue_by_month(conn, first, last, account)
    if as_json:
        print_json(lines)
    else:
        _print_table([asdict(line) for line in lines], ("month", "service", "currency", "net_minor"))


def _moment(text: str | None) -> datetime | None:
    """Return the start of a day in UTC, or a time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FilterCannotBe(
            f"{text} is neither a day nor a time; write 2026-09-01, or 2026-09-01T12:00:00+00:00."
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _print_page(page: Page[Any], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json(page)
        return
    _print_table([asdict(row) for row in page.rows], columns)
    if page.next:
        say(f"More: --cursor {page.next}")


def _print_table(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    draw(table(columns, lines))
