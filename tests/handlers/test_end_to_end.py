"""From the order to the mailed invoice and the read models, for each payment method, on real servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import httpx
import pytest

from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.order import Method
from handlers.requests import CheckOut, ConfirmOfflinePayment
from infra.postgres.connections import connect
from projections.billing import BillingDocumentRow, PaymentRow, ReceivableRow
from projections.engine.rows import Row, stored
from projections.entitlements import EntitlementRow, entitlements
from projections.invoice_links import InvoiceLinkAttemptRow, InvoiceLinkRow
from projections.maintenance.runner import wait
from projections.orders import OrderRow
from projections.timeline import TimelineRow
from tests.support.at_work import SOON_S, AtWork, eventually, link_in
from tests.support.examples import NOW, eur
from tests.support.in_memory import DORA


@dataclass(frozen=True)
class Way:
    """A payment method: pays the order of 50 extensions, 20 Ultimate and a domain."""

    method: Method
    buy: Callable[[AtWork], str]
    pi_number: str | None = None


def collected(work: AtWork) -> str:
    """Dora is notified, collects the money and confirms it."""
    order_id = work.order(**FIFTY)
    work.ask(CheckOut(order_id=order_id, account_id="acme", method=Method.OFFLINE, pi_number="PI-2026-7"))
    (told,) = eventually(lambda: work.mails(f"Order {order_id} of ACME awaits EUR 544.65"), "the mail to Dora")
    assert str(told["To"]) == "dora@yt.example"
    work.ask(ConfirmOfflinePayment(order_id=order_id, amount=eur(544_65)), DORA)
    return order_id


FIFTY = {"extensions": 50, "ultimate_plan": 20, "custom_domain": 1}
WAYS = (
    Way(Method.PAYPAL, lambda work: work.buy(Method.PAYPAL, **FIFTY)),
    Way(Method.CARD, lambda work: work.buy(Method.CARD, **FIFTY)),
    Way(Method.OFFLINE, collected, pi_number="PI-2026-7"),
)


def rows(work: AtWork, table: type[Row]) -> list[dict[str, object]]:
    """ACME's rows in a read model, once it has caught up with the log."""
    with connect(work.running.database_url) as conn:
        assert wait(conn, work.dependencies.log.head(), SOON_S)
        return [vars(row) for row in stored(conn, table, account_id="acme")]


def some(row: dict[str, object], *columns: str) -> tuple[object, ...]:
    return tuple(row[column] for column in columns)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.method)
def test_a_paid_order_is_granted_invoiced_mailed_and_visible(trunkline: AtWork, way: Way) -> None:
    order_id = way.buy(trunkline)
    trunkline.until(InvoiceEmailed, order_id)
    (issued,) = trunkline.all(InvoiceIssued, order_id)

    (mail,) = trunkline.mails("Invoice YT-2026-000001")
    assert len(trunkline.mails("awaits")) == (way.method is Method.OFFLINE), (
        "only offline payments are collected by hand"
    )
    assert str(mail["To"]) == "Willy Wonka <wonka@acme.example>"
    answer = httpx.post(link_in(mail), trust_env=False)
    assert hashlib.sha256(answer.content).hexdigest() == issued.document.sha256

    (row,) = rows(trunkline, OrderRow)
    assert some(row, "order_id", "state", "method", "pi_number", "attention", "invoice_number") == (
        order_id,
        "fulfilled",
        way.method,
        way.pi_number,
        None,
        "YT-2026-000001",
    )
    assert some(row, "net_minor", "tax_minor", "total_minor", "refunded_minor") == (459_90, 84_75, 544_65, 0)
    assert some(row, "requested_at", "placed_at", "paid_at", "fulfilled_at") == (NOW, NOW, NOW, NOW)
    assert row["expires_at"] == NOW + timedelta(days=14)

    (document,) = rows(trunkline, BillingDocumentRow)
    assert some(document, "kind", "number", "net_minor", "tax_minor", "total_minor") == (
        "invoice",
        "YT-2026-000001",
        459_90,
        84_75,
        544_65,
    )
    assert document["by_service"] == {"extensions": 365_00, "ultimate_plan": 73_00, "custom_domain": 21_90}
    assert document["sha256"] == issued.document.sha256

    (payment,) = rows(trunkline, PaymentRow)
    assert some(payment, "capture_id", "method", "amount_minor", "set_aside") == (
        issued.capture_id,
        way.method,
        544_65,
        None,
    )
    (receivable,) = rows(trunkline, ReceivableRow)
    assert receivable["owed"] is False

    with connect(trunkline.running.database_url) as conn:
        answers = entitlements(stored(conn, EntitlementRow, account_id="acme"))
    assert {answer.service: answer.total for answer in answers} == {
        "extensions": 150,
        "enterprise_plan": 110,
        "ultimate_plan": 40,
        "custom_domain": 1,
    }
    assert {answer.valid_until for answer in answers} == {date(2027, 1, 1)}

    (link,) = rows(trunkline, InvoiceLinkRow)
    assert some(link, "state", "ordinal", "emailed_at", "consumed_at") == ("consumed", 1, NOW, NOW)
    assert [attempt["outcome"] for attempt in rows(trunkline, InvoiceLinkAttemptRow)] == ["consumed"]

    told = [(str(entry["topic"]).split(".")[1], entry["actor"]) for entry in rows(trunkline, TimelineRow)]
    assert told[-1] == ("LinkConsumed", "system:trunkline")
    assert ("OrderPlaced", "partner:willy") in told
    assert [name for name, _ in told].count("PaymentCaptured") == 1
    assert len(told) == len(trunkline.history()) - 1, "all but the price list, which belongs to no account"
