"""What became of every order?"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from domain.messages import Event
from domain.order import AsideReason, Method
from infra.recorded import Recorded
from projections.engine.batches import project
from projections.orders import ORDERS, OrderRow, unpaid_in_time
from tests.support.examples import (
    DEADLINE,
    LATER,
    NOW,
    ORDERED,
    bucket_added,
    cancelled,
    captured,
    contact_chosen,
    declined,
    eur,
    expired,
    fulfilled,
    invoice_issued,
    no_longer_fits,
    placed,
    placed_offline,
    refunded,
    requested,
)
from tests.support.given_domain import but
from tests.support.given_projection import given, recorded

PAID = given(ORDERS, requested, contact_chosen, placed, captured)


def test_an_order_begins_with_its_request() -> None:
    given(ORDERS).when(requested).then(
        {
            "order-1": OrderRow(
                order_id="order-1",
                account_id="acme",
                package_id="pkg-acme",
                state="requested",
                currency="EUR",
                net_minor=459_90,
                tax_minor=84_75,
                total_minor=544_65,
                lines=[line.model_dump(mode="json") for line in ORDERED.lines],
                requested_at=NOW,
                expires_at=DEADLINE,
            )
        }
    )


def test_its_billing_contact_is_chosen_and_chosen_again() -> None:
    shown = given(ORDERS, requested).when(contact_chosen).then({"order-1": {"receiver_id": "wonka"}})
    bucket_chosen = but(contact_chosen, receiver_id="bucket", contact=bucket_added.contact)
    shown.when(bucket_chosen).then({"order-1": {"receiver_id": "bucket"}})


def test_it_is_placed_for_payment_at_the_provider() -> None:
    given(ORDERS, requested).when(placed).then({"order-1": {"state": "placed", "method": "paypal", "placed_at": NOW}})


def test_it_is_placed_for_offline_payment_and_then_for_the_provider() -> None:
    shown = given(ORDERS, requested)
    shown = shown.when(placed_offline).then(
        {"order-1": {"state": "placed", "method": "offline", "pi_number": "PI-2026-7", "placed_at": NOW}}
    )
    shown.when(but(placed, placed_at=LATER, method=Method.CARD)).then(
        {"order-1": {"method": "card", "pi_number": None, "placed_at": LATER}}
    )


def test_it_is_declined_and_placed_again() -> None:
    shown = given(ORDERS, requested, placed).when(declined).then({"order-1": {"state": "declined"}})
    shown.when(but(placed, placed_at=LATER)).then({"order-1": {"state": "placed", "placed_at": LATER}})


def test_it_is_paid_then_fulfilled_then_invoiced() -> None:
    shown = given(ORDERS, requested, placed)
    shown = shown.when(captured).then({"order-1": {"state": "paid", "capture_id": "capture-1", "paid_at": LATER}})
    shown = shown.when(fulfilled).then({"order-1": {"state": "fulfilled", "fulfilled_at": LATER}})
    shown.when(invoice_issued).then({"order-1": {"invoice_id": "invoice-1", "invoice_number": "YT-2026-000001"}})


def test_it_is_cancelled() -> None:
    given(ORDERS, requested, placed).when(cancelled).then({"order-1": {"state": "cancelled"}})


def test_it_expires() -> None:
    given(ORDERS, requested, placed).when(expired).then({"order-1": {"state": "expired"}})


def test_a_payment_set_aside_marks_it_for_a_person() -> None:
    late = but(no_longer_fits, reason=AsideReason.EXPIRED, explanation="The payment came too late.")
    given(ORDERS, requested, placed, expired).when(late).then({"order-1": {"attention": "expired"}})
    PAID.when(no_longer_fits).then({"order-1": {"attention": "no_longer_fits"}})


def test_it_is_refunded_partly_and_then_fully() -> None:
    shown = PAID.after([fulfilled])
    shown = shown.when(but(refunded, amount=eur(200_00))).then(
        {"order-1": {"state": "partly_refunded", "refunded_minor": 200_00}}
    )
    shown.when(but(refunded, refund_id="refund-2", amount=eur(344_65))).then(
        {"order-1": {"state": "refunded", "refunded_minor": 544_65}}
    )


def test_it_is_partly_refunded_before_it_is_fulfilled() -> None:
    shown = PAID.after([but(refunded, amount=eur(200_00))])
    shown.when(fulfilled).then({"order-1": {"fulfilled_at": LATER}})


def test_an_order_is_visible_to_its_account_only() -> None:
    other = but(requested, order_id="order-2")
    shown = given(ORDERS, requested, other).when(but(cancelled, order_id="order-2"))
    shown.then({"order-2": {"state": "cancelled"}})


def test_open_orders_past_their_deadline_are_listed_oldest_first(tables: Connection[Any]) -> None:
    late, latest = NOW - timedelta(days=1), NOW - timedelta(days=2)

    def order(order_id: str, *then: Event, expires_at: datetime = late) -> list[Event]:
        first = but(requested, expires_at=expires_at)
        return [but(event, order_id=order_id) for event in (first, *then)]

    events = [
        *order("requested"),
        *order("placed", placed, expires_at=latest),
        *order("declined", placed, declined, expires_at=NOW),
        *order("paid", placed, captured),
        *order("cancelled", cancelled),
        *order("expired", expired),
        *order("in-time", placed, expires_at=NOW + timedelta(microseconds=1)),
    ]
    history: list[Recorded] = [recorded(event, position) for position, event in enumerate(events, start=1)]
    with tables.transaction():
        project(tables, ORDERS, history)
    assert unpaid_in_time(tables, NOW) == ["placed", "requested", "declined"]
