"""The order here: 544.65 EUR for 50 extensions, 20 of the Ultimate Plan and a custom domain, to be paid in 14 days."""

from datetime import timedelta
from itertools import permutations

import pytest

from domain.account import ERASED_CONTACT
from domain.money import Money
from domain.order import (
    ORDER,
    AsideReason,
    Method,
    NoBillingContact,
    NothingToPay,
    NotPaid,
    NotYetExpired,
    Order,
    OrderClosed,
    OrderCommand,
    OrderEvent,
    OrderExists,
    OrderFulfilled,
    PaymentCaptured,
    PaymentRefunded,
    PaymentSetAside,
    PiNumberNeedsOffline,
    RefundNotPossible,
    RefundPayment,
    Status,
    UnknownOrder,
    UnknownRefund,
)
from domain.price_list import PriceList
from domain.quote import Selection, quote
from tests.support.examples import (
    BUCKET,
    DEADLINE,
    LATER,
    NOW,
    TODAY,
    YEAR,
    cancel,
    cancelled,
    capture,
    captured,
    choose_contact,
    contact_chosen,
    decline,
    declined,
    eur,
    expire,
    expired,
    fulfil,
    fulfilled,
    no_longer_fits,
    offer,
    place,
    place_offline,
    placed,
    placed_offline,
    published,
    quoted,
    refund,
    refunded,
    request,
    requested,
    set_aside,
)
from tests.support.given_domain import but, given

READY = (requested, contact_chosen)
PLACED = (*READY, placed)
PAID = (*PLACED, captured)
FULFILLED = (*PAID, fulfilled)
A_MOMENT = timedelta(microseconds=1)

SET_ASIDE = PaymentSetAside(
    order_id="order-1",
    method=Method.PAYPAL,
    capture_id="capture-1",
    amount=eur(544_65),
    reason=AsideReason.NOT_PLACED,
    explanation="-",
    captured_at=LATER,
)
CLOSED = {
    "paid": PAID,
    "fulfilled": FULFILLED,
    "partly_refunded": (*FULFILLED, but(refunded, amount=eur(100_00), services=())),
    "refunded": (*FULFILLED, refunded),
    "cancelled": (*PLACED, cancelled),
    "expired": (*PLACED, expired),
}
OPEN = {"requested": READY, "placed": PLACED, "declined": (*PLACED, declined)}


def aside(reason: AsideReason, explanation: str, **changes: object) -> PaymentSetAside:
    """The payment of ``capture``, set aside for a person to decide."""
    return but(SET_ASIDE, reason=reason, explanation=explanation, **changes)


def part(amount_minor: int, *services: str, refund_id: str = "refund-1") -> RefundPayment:
    return but(refund, amount=eur(amount_minor), services=services, refund_id=refund_id)


def parted(amount_minor: int, *services: str, refund_id: str = "refund-1") -> PaymentRefunded:
    return but(refunded, amount=eur(amount_minor), services=services, refund_id=refund_id)


@pytest.mark.parametrize("status", [*OPEN, *CLOSED])
def test_every_status_is_reached_by_its_history(status: str) -> None:
    assert given(ORDER, *{**OPEN, **CLOSED}[status]).state.status == status


@pytest.mark.parametrize(
    "command", [choose_contact, place, capture, set_aside, decline, fulfil, cancel, expire, refund], ids=type
)
def test_nothing_is_done_to_an_order_that_was_never_requested(command: OrderCommand) -> None:
    given(ORDER).when(command).then_refused(UnknownOrder, saying="There is no order order-1")


def test_the_order_of_another_account_is_unknown() -> None:
    order = given(ORDER, requested).state
    assert order.require("order-1", "acme") == requested
    with pytest.raises(UnknownOrder, match="name one of the account's own orders"):
        order.require("order-1", "slugworth")


# --- requested -----------------------------------------------------------------------------------------------------


def test_an_order_begins_at_the_price_that_was_shown() -> None:
    order = given(ORDER).when(request).then(requested).state
    assert order.status is Status.REQUESTED
    assert not order.open


def test_an_order_requested_twice_is_requested_once() -> None:
    given(ORDER, requested).when(request).then_nothing()


def test_an_order_requested_again_a_day_later_keeps_its_deadline() -> None:
    a_day_later = but(request, at=NOW + timedelta(days=1), expires_at=DEADLINE + timedelta(days=1))
    given(ORDER, requested).when(a_day_later).then_nothing()


@pytest.mark.parametrize(
    "changes", [{"account_id": "slugworth"}, {"package_id": "pkg-2"}, {"quote": quoted(extensions=51)}], ids=str
)
def test_an_order_id_belongs_to_one_order(changes: dict[str, object]) -> None:
    given(ORDER, requested).when(but(request, **changes)).then_refused(OrderExists, saying="choose a new id")


def test_an_order_that_totals_zero_is_refused() -> None:
    free = PriceList(versions=(but(published, offers=(offer("extensions", "extension", 0),)),))
    nothing = quote(
        free, currency="EUR", country="DE", term=YEAR, on=TODAY, selections=[Selection(service="extensions")]
    )
    given(ORDER).when(but(request, quote=nothing)).then_refused(NothingToPay, saying="The order comes to 0")


def test_the_second_of_two_orders_that_claim_an_id_at_once_is_refused() -> None:
    given(ORDER).when(but(request, quote=quoted(extensions=1))).losing_to(request).then_refused(
        OrderExists, saying="The order order-1 already exists with other lines"
    )


# --- the billing contact -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", OPEN.values(), ids=OPEN)
def test_another_billing_contact_can_be_chosen_until_the_order_is_paid(history: tuple[OrderEvent, ...]) -> None:
    bucket = but(choose_contact, receiver_id="bucket", contact=BUCKET)
    given(ORDER, *history).when(bucket).then(but(contact_chosen, receiver_id="bucket", contact=BUCKET))


def test_a_billing_contact_chosen_twice_is_chosen_once() -> None:
    given(ORDER, requested).when(choose_contact).then(contact_chosen).when(choose_contact).then_nothing()


@pytest.mark.parametrize("history", CLOSED.values(), ids=CLOSED)
def test_the_billing_contact_of_a_closed_order_stays(history: tuple[OrderEvent, ...]) -> None:
    order = given(ORDER, *history)
    order.when(choose_contact).then_nothing()
    order.when(but(choose_contact, contact=BUCKET)).then_refused(OrderClosed, saying="can be chosen until it is paid")


def test_the_later_of_two_contacts_chosen_at_once_holds() -> None:
    bucket = but(choose_contact, receiver_id="bucket", contact=BUCKET)
    order = given(ORDER, requested).when(choose_contact).losing_to(bucket).then(contact_chosen)
    assert order.state.billing == contact_chosen


def test_a_contact_chosen_while_the_payment_arrives_comes_too_late() -> None:
    bucket = but(choose_contact, receiver_id="bucket", contact=BUCKET)
    given(ORDER, *PLACED).when(bucket).losing_to(capture).then_refused(OrderClosed, saying="The order is paid")


# --- placed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", Method)
def test_an_order_is_placed_in_one_of_three_ways(method: Method) -> None:
    order = given(ORDER, *READY).when(but(place, method=method)).then(but(placed, method=method)).state
    assert order.status is Status.PLACED
    assert order.open


def test_an_offline_order_may_name_its_proforma_invoice() -> None:
    given(ORDER, *READY).when(place_offline).then(placed_offline)


def test_an_order_placed_twice_is_placed_once() -> None:
    given(ORDER, *PLACED).when(place).then_nothing()
    given(ORDER, *READY, placed_offline).when(place_offline).then_nothing()


def test_an_order_placed_again_after_it_was_paid_changes_nothing() -> None:
    given(ORDER, *PAID).when(place).then_nothing()


@pytest.mark.parametrize("history", [PLACED, OPEN["declined"]])
def test_another_way_to_pay_can_be_chosen_until_the_order_is_paid(history: tuple[OrderEvent, ...]) -> None:
    order = given(ORDER, *history).when(place_offline).then(placed_offline)
    assert order.state.status is Status.PLACED


def test_an_order_needs_a_billing_contact() -> None:
    given(ORDER, requested).when(place).then_refused(NoBillingContact, saying="choose a billing contact first")


def test_an_order_whose_billing_contact_was_erased_needs_another_one() -> None:
    order = given(ORDER, requested, but(contact_chosen, contact=ERASED_CONTACT))
    order.when(place).then_refused(NoBillingContact, saying="was erased; choose another billing contact first")
    bucket = but(choose_contact, receiver_id="bucket", contact=BUCKET)
    order.when(bucket).then(but(contact_chosen, receiver_id="bucket", contact=BUCKET)).when(place).then(placed)


@pytest.mark.parametrize("method", [Method.PAYPAL, Method.CARD])
def test_a_pi_number_goes_with_offline_payment_only(method: Method) -> None:
    given(ORDER, *READY).when(but(place_offline, method=method)).then_refused(
        PiNumberNeedsOffline, saying=f"leave it out for {method}"
    )


@pytest.mark.parametrize("history", CLOSED.values(), ids=CLOSED)
def test_a_closed_order_is_not_placed_another_way(history: tuple[OrderEvent, ...]) -> None:
    given(ORDER, *history).when(place_offline).then_refused(OrderClosed, saying="request a new one")


def test_an_order_can_be_placed_until_its_deadline() -> None:
    last = DEADLINE - A_MOMENT
    given(ORDER, *READY).when(but(place, at=last)).then(but(placed, placed_at=last))
    given(ORDER, *READY).when(but(place, at=DEADLINE)).then_refused(
        OrderClosed, saying="The order expired at 2026-11-03 09:00 UTC"
    )


def test_an_order_placed_twice_at_once_is_placed_once() -> None:
    given(ORDER, *READY).when(place).losing_to(place).then_nothing()


def test_an_order_placed_in_two_ways_at_once_is_paid_in_the_later_one() -> None:
    order = given(ORDER, *READY).when(place_offline).losing_to(place).then(placed_offline)
    assert order.state.placed == placed_offline


def test_an_order_placed_while_it_is_cancelled_is_refused() -> None:
    given(ORDER, *READY).when(place).losing_to(cancel).then_refused(OrderClosed, saying="The order is cancelled")


# --- paid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [PLACED, OPEN["declined"]])
def test_a_payment_of_an_open_order_is_captured(history: tuple[OrderEvent, ...]) -> None:
    order = given(ORDER, *history).when(capture).then(captured).state
    assert order.status is Status.PAID
    assert order.refundable_minor == 544_65


@pytest.mark.parametrize("history", [PAID, FULFILLED, (*FULFILLED, refunded)])
def test_a_payment_captured_twice_is_recorded_once(history: tuple[OrderEvent, ...]) -> None:
    given(ORDER, *history).when(capture).then_nothing()


def test_a_payment_set_aside_twice_is_set_aside_once() -> None:
    given(ORDER, *READY, SET_ASIDE).when(capture).then_nothing()


def test_a_payment_that_was_set_aside_before_the_order_was_placed_does_not_pay_it() -> None:
    given(ORDER, *READY, SET_ASIDE, placed).when(capture).then_nothing()


@pytest.mark.parametrize(
    ("history", "reason", "explanation"),
    [
        (READY, AsideReason.NOT_PLACED, "The order was requested when the payment came."),
        (CLOSED["cancelled"], AsideReason.CANCELLED, "The order was cancelled when the payment came."),
        (CLOSED["expired"], AsideReason.EXPIRED, "The order was expired when the payment came."),
    ],
)
def test_a_payment_of_an_order_that_is_not_open_is_set_aside(
    history: tuple[OrderEvent, ...], reason: AsideReason, explanation: str
) -> None:
    before = given(ORDER, *history)
    after = before.when(capture).then(aside(reason, explanation))
    assert after.state.status is before.state.status
    after.when(fulfil).then_refused(NotPaid, saying="only a paid order can be fulfilled")


@pytest.mark.parametrize("status", ["paid", "fulfilled", "partly_refunded", "refunded"])
def test_a_second_payment_is_set_aside(status: str) -> None:
    second = but(capture, capture_id="capture-2")
    explanation = f"The order was {status} when the payment came."
    after = (
        given(ORDER, *CLOSED[status])
        .when(second)
        .then(aside(AsideReason.ALREADY_PAID, explanation, capture_id="capture-2"))
    )
    assert after.state.captured == captured
    assert not after.state.unfulfillable


@pytest.mark.parametrize(
    ("amount", "reason", "explanation"),
    [
        (eur(544_64), AsideReason.AMOUNT_DIFFERS, "The order comes to 54465 minor units."),
        (eur(544_66), AsideReason.AMOUNT_DIFFERS, "The order comes to 54465 minor units."),
        (eur(0), AsideReason.AMOUNT_DIFFERS, "The order comes to 54465 minor units."),
        (eur(-544_65), AsideReason.AMOUNT_DIFFERS, "The order comes to 54465 minor units."),
        (Money(amount_minor=544_65, currency="USD"), AsideReason.CURRENCY_DIFFERS, "The order is in EUR."),
    ],
    ids=str,
)
def test_a_wrong_amount_or_currency_is_set_aside_and_the_order_can_still_be_paid(
    amount: Money, reason: AsideReason, explanation: str
) -> None:
    after = given(ORDER, *PLACED).when(but(capture, amount=amount)).then(aside(reason, explanation, amount=amount))
    assert after.state.status is Status.PLACED
    after.when(but(capture, capture_id="capture-2")).then(but(captured, capture_id="capture-2"))


def test_a_payment_captured_in_time_counts_even_if_reported_late() -> None:
    in_time = DEADLINE - A_MOMENT
    late_news = but(capture, captured_at=in_time, at=DEADLINE + timedelta(days=3))
    given(ORDER, *PLACED).when(late_news).then(but(captured, captured_at=in_time))


def test_a_payment_captured_too_late_expires_the_order_and_is_set_aside() -> None:
    too_late = but(capture, captured_at=DEADLINE, at=DEADLINE)
    order = (
        given(ORDER, *PLACED)
        .when(too_late)
        .then(
            expired,
            aside(AsideReason.EXPIRED, "The payment came after the order had expired.", captured_at=DEADLINE),
        )
    )
    assert order.state.status is Status.EXPIRED
    order.when(too_late).then_nothing()


def test_a_payment_that_loses_to_a_cancellation_is_set_aside() -> None:
    given(ORDER, *PLACED).when(capture).losing_to(cancel).then(
        aside(AsideReason.CANCELLED, "The order was cancelled when the payment came.")
    )


def test_a_payment_that_loses_to_the_expiry_is_set_aside() -> None:
    given(ORDER, *PLACED).when(capture).losing_to(expire).then(
        aside(AsideReason.EXPIRED, "The order was expired when the payment came.")
    )


def test_a_payment_that_loses_to_another_payment_is_set_aside() -> None:
    second = but(capture, capture_id="capture-2")
    given(ORDER, *PLACED).when(second).losing_to(capture).then(
        aside(AsideReason.ALREADY_PAID, "The order was paid when the payment came.", capture_id="capture-2")
    )


def test_a_payment_delivered_twice_at_once_is_recorded_once() -> None:
    given(ORDER, *PLACED).when(capture).losing_to(capture).then_nothing()


# --- set aside -----------------------------------------------------------------------------------------------------


def test_a_payment_that_no_longer_fits_the_package_is_set_aside_and_fulfils_nothing() -> None:
    order = given(ORDER, *PAID).when(set_aside).then(no_longer_fits)
    assert order.state.unfulfillable
    order.when(fulfil).then_nothing().when(refund).then(refunded)


def test_a_payment_is_set_aside_once() -> None:
    given(ORDER, *PAID, no_longer_fits).when(set_aside).then_nothing()


def test_the_payment_of_a_fulfilled_order_is_not_set_aside() -> None:
    given(ORDER, *FULFILLED).when(set_aside).then_nothing()


def test_without_a_payment_there_is_nothing_to_set_aside() -> None:
    given(ORDER, *PLACED).when(set_aside).then_refused(NotPaid, saying="no payment to set aside")


def test_setting_aside_that_loses_to_the_fulfilment_changes_nothing() -> None:
    given(ORDER, *PAID).when(set_aside).losing_to(fulfil).then_nothing()


# --- declined ------------------------------------------------------------------------------------------------------


def test_after_a_decline_the_customer_may_try_again() -> None:
    order = given(ORDER, *PLACED).when(decline).then(declined)
    assert order.state.status is Status.DECLINED
    order.when(but(decline, attempt_id="attempt-2")).then(but(declined, attempt_id="attempt-2")).when(capture).then(
        captured
    )


def test_a_decline_names_the_way_to_pay_that_was_declined() -> None:
    given(ORDER, *READY, but(placed, method=Method.CARD)).when(decline).then(but(declined, method=Method.CARD))


def test_a_decline_delivered_twice_is_recorded_once() -> None:
    given(ORDER, *PLACED, declined).when(decline).then_nothing()
    given(ORDER, *PLACED, declined, placed_offline).when(decline).then_nothing()


@pytest.mark.parametrize("history", [READY, *CLOSED.values()])
def test_a_decline_of_an_order_that_is_not_open_changes_nothing(history: tuple[OrderEvent, ...]) -> None:
    given(ORDER, *history).when(decline).then_nothing()


def test_a_decline_that_loses_to_a_payment_changes_nothing() -> None:
    given(ORDER, *PLACED).when(decline).losing_to(capture).then_nothing()


def test_a_payment_that_loses_to_a_decline_is_captured() -> None:
    given(ORDER, *PLACED).when(capture).losing_to(decline).then(captured)


# --- fulfilled -----------------------------------------------------------------------------------------------------


def test_a_paid_order_is_fulfilled() -> None:
    assert given(ORDER, *PAID).when(fulfil).then(fulfilled).state.status is Status.FULFILLED


def test_an_order_fulfilled_twice_is_fulfilled_once() -> None:
    given(ORDER, *FULFILLED).when(fulfil).then_nothing()


def test_a_partly_refunded_order_can_be_fulfilled_and_stays_partly_refunded() -> None:
    order = given(ORDER, *PAID, parted(21_90, "custom_domain")).when(fulfil).then(fulfilled)
    assert order.state.status is Status.PARTLY_REFUNDED
    assert order.state.given_up == {"custom_domain"}


def test_a_fully_refunded_order_is_not_fulfilled() -> None:
    given(ORDER, *PAID, refunded).when(fulfil).then_nothing()


@pytest.mark.parametrize("status", ["requested", "placed", "declined", "cancelled", "expired"])
def test_nothing_is_granted_before_it_is_paid(status: str) -> None:
    given(ORDER, *{**OPEN, **CLOSED}[status]).when(fulfil).then_refused(NotPaid, saying=f"The order is {status}")


def test_a_fulfilment_that_loses_to_a_full_refund_grants_nothing() -> None:
    given(ORDER, *PAID).when(fulfil).losing_to(refund).then_nothing()


def test_a_fulfilment_that_loses_to_another_is_made_once() -> None:
    given(ORDER, *PAID).when(fulfil).losing_to(fulfil).then_nothing()


# --- cancelled -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", OPEN.values(), ids=OPEN)
def test_an_order_can_be_cancelled_until_it_is_paid(history: tuple[OrderEvent, ...]) -> None:
    assert given(ORDER, *history).when(cancel).then(cancelled).state.status is Status.CANCELLED


def test_an_order_cancelled_twice_is_cancelled_once() -> None:
    given(ORDER, *PLACED, cancelled).when(but(cancel, reason="Changed it again")).then_nothing()


@pytest.mark.parametrize("status", ["paid", "fulfilled", "partly_refunded", "refunded", "expired"])
def test_a_closed_order_is_not_cancelled(status: str) -> None:
    given(ORDER, *CLOSED[status]).when(cancel).then_refused(OrderClosed, saying=f"The order is {status} and cannot be")


def test_a_cancellation_that_loses_to_a_payment_is_refused() -> None:
    given(ORDER, *PLACED).when(cancel).losing_to(capture).then_refused(
        OrderClosed, saying="a paid order can be refunded"
    )


def test_a_cancellation_that_loses_to_another_is_made_once() -> None:
    given(ORDER, *PLACED).when(cancel).losing_to(cancel).then_nothing()


# --- expired -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", OPEN.values(), ids=OPEN)
def test_an_order_expires_at_its_deadline(history: tuple[OrderEvent, ...]) -> None:
    assert given(ORDER, *history).when(expire).then(expired).state.status is Status.EXPIRED


@pytest.mark.parametrize("history", CLOSED.values(), ids=CLOSED)
def test_a_closed_order_does_not_expire(history: tuple[OrderEvent, ...]) -> None:
    given(ORDER, *history).when(expire).then_nothing()


@pytest.mark.parametrize("history", OPEN.values(), ids=OPEN)
def test_an_order_does_not_expire_before_its_deadline(history: tuple[OrderEvent, ...]) -> None:
    given(ORDER, *history).when(but(expire, at=DEADLINE - A_MOMENT)).then_refused(
        NotYetExpired, saying="The order can be paid until 2026-11-03 09:00 UTC"
    )


def test_an_expiry_that_loses_to_a_payment_captured_in_time_changes_nothing() -> None:
    given(ORDER, *PLACED).when(expire).losing_to(capture).then_nothing()


def test_an_expiry_that_loses_to_another_is_made_once() -> None:
    given(ORDER, *PLACED).when(expire).losing_to(expire).then_nothing()


# --- refunded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [PAID, FULFILLED])
def test_a_full_refund_gives_up_every_service(history: tuple[OrderEvent, ...]) -> None:
    order = given(ORDER, *history).when(refund).then(refunded).state
    assert order.status is Status.REFUNDED
    assert order.refundable_minor == 0
    assert order.given_up == {"extensions", "ultimate_plan", "custom_domain"}


def test_a_partial_refund_gives_up_the_services_that_it_names() -> None:
    order = given(ORDER, *FULFILLED).when(part(23_43, "custom_domain")).then(parted(23_43, "custom_domain")).state
    assert order.status is Status.PARTLY_REFUNDED
    assert order.refundable_minor == 521_22
    assert order.given_up == {"custom_domain"}


def test_a_partial_refund_may_give_up_no_service() -> None:
    order = given(ORDER, *FULFILLED).when(part(1)).then(parted(1)).state
    assert order.given_up == frozenset()


def test_refunding_the_rest_gives_up_every_service() -> None:
    order = given(ORDER, *FULFILLED, parted(500_00, "custom_domain")).when(part(44_65, refund_id="refund-2"))
    everything = parted(44_65, "extensions", "ultimate_plan", "custom_domain", refund_id="refund-2")
    assert order.then(everything).state.status is Status.REFUNDED


def test_a_refund_made_twice_is_made_once() -> None:
    given(ORDER, *FULFILLED, refunded).when(refund).then_nothing()
    given(ORDER, *FULFILLED, parted(1)).when(part(1)).then_nothing()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (part(444_66), "44466 EUR cannot be refunded; from 1 to 44465 minor units of EUR can"),
        (part(0), "0 EUR cannot be refunded"),
        (part(-1), "-1 EUR cannot be refunded"),
        (but(refund, amount=Money(amount_minor=1, currency="USD")), "1 USD cannot be refunded"),
        (part(1, "high_availability"), "high_availability is not in the order; its services are extensions, ultimate"),
        (part(444_65, "high_availability"), "high_availability is not in the order"),
    ],
)
def test_a_refund_that_is_not_possible_is_refused(wrong: RefundPayment, sentence: str) -> None:
    given(ORDER, *FULFILLED, parted(100_00, refund_id="refund-0")).when(wrong).then_refused(
        RefundNotPossible, saying=sentence
    )


def test_nothing_is_left_to_refund_of_a_refunded_order() -> None:
    given(ORDER, *FULFILLED, refunded).when(part(1, refund_id="refund-2")).then_refused(
        RefundNotPossible, saying="from 1 to 0 minor units"
    )


@pytest.mark.parametrize("status", ["requested", "placed", "declined", "cancelled", "expired"])
def test_an_unpaid_order_is_not_refunded(status: str) -> None:
    given(ORDER, *{**OPEN, **CLOSED}[status]).when(refund).then_refused(
        NotPaid, saying=f"The order is {status}; only a payment can be refunded"
    )


def test_the_second_of_two_full_refunds_at_once_is_refused() -> None:
    given(ORDER, *FULFILLED).when(but(refund, refund_id="refund-2")).losing_to(refund).then_refused(
        RefundNotPossible, saying="54465 EUR cannot be refunded; from 1 to 0"
    )


def test_a_refund_delivered_twice_at_once_is_made_once() -> None:
    given(ORDER, *FULFILLED).when(refund).losing_to(refund).then_nothing()


def test_a_refund_is_found_by_its_id() -> None:
    order = given(ORDER, *FULFILLED, refunded).state
    assert order.refund("refund-1") == refunded
    with pytest.raises(UnknownRefund, match="There is no refund refund-2"):
        order.refund("refund-2")


# --- in any order --------------------------------------------------------------------------------------------------

DELIVERIES: dict[str, OrderCommand] = {
    "approved": capture,
    "captured": but(capture, at=LATER + timedelta(minutes=1)),
    "declined": decline,
    "refunded in part": part(200_00, "custom_domain", refund_id="refund-1"),
    "refunded for the rest": part(344_65, refund_id="refund-2"),
}
"""What the provider reports of one payment: the answer to our call, the webhook that repeats it, and the others."""


def deliver(names: tuple[str, ...]) -> tuple[Order, list[OrderEvent]]:
    """The order and its recorded events after these deliveries, each followed by an attempt to fulfil the order.

    Each delivery is repeated, as at-least-once delivery does. A refund that was refused because it overtook its payment
    then succeeds, and what was already done is not done again.
    """
    order, told = given(ORDER, *PLACED), list[OrderEvent]()
    for name in names * 2:
        delivery = order.when(DELIVERIES[name])
        fulfilment = delivery.after.when(fulfil)
        told += [*delivery.events, *fulfilment.events]
        order = fulfilment.after
    return order.state, told


@pytest.mark.parametrize("names", list(permutations(DELIVERIES)), ids=", ".join)
def test_the_order_ends_the_same_in_any_order_of_deliveries(names: tuple[str, ...]) -> None:
    order, told = deliver(names)
    assert order.status is Status.REFUNDED
    assert order.captured == captured
    assert order.fulfilled
    assert order.payments == {"capture-1"}
    assert [order.refund("refund-1").amount, order.refund("refund-2").amount] == [eur(200_00), eur(344_65)]
    assert order.given_up == {"extensions", "ultimate_plan", "custom_domain"}
    kinds = [type(event) for event in told]
    assert kinds.count(PaymentCaptured) == kinds.count(OrderFulfilled) == 1
    assert kinds.index(PaymentCaptured) < kinds.index(OrderFulfilled)
