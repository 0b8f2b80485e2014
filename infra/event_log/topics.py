"""The stored name of every event. The names are pinned, so moving or renaming a class never orphans history."""

from __future__ import annotations

from functools import cache
from typing import get_args

from eventsourcing.utils import register_topic

from domain.account import AccountEvent
from domain.allocation import AllocationEvent
from domain.invoice import InvoiceEvent
from domain.invoice_link import InvoiceLinkEvent
from domain.invoice_series import InvoiceSeriesEvent
from domain.messages import Event
from domain.order import OrderEvent
from domain.payment_reference import PaymentReferenceEvent
from domain.price_list import PriceListEvent
from domain.subscription import SubscriptionEvent

AGGREGATES = (
    AccountEvent,
    PriceListEvent,
    SubscriptionEvent,
    AllocationEvent,
    OrderEvent,
    PaymentReferenceEvent,
    InvoiceSeriesEvent,
    InvoiceEvent,
    InvoiceLinkEvent,
)


@cache
def topics() -> dict[str, type[Event]]:
    """Return all event classes by topic. They are also registered with eventsourcing, whose tools resolve topics."""
    classes = [event for union in AGGREGATES for event in get_args(union) or (union,)]
    for event in classes:
        register_topic(event.TOPIC, event)
    return {event.TOPIC: event for event in classes}
