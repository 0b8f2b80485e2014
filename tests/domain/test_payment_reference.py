import pytest

from domain.payment_reference import (
    PAYMENT_REFERENCE,
    PaymentReferenceTaken,
    capture_reference,
    pi_reference,
)
from tests.support.examples import claim, claimed, place_offline
from tests.support.given_domain import but, given


def test_a_number_is_claimed_for_an_order() -> None:
    given(PAYMENT_REFERENCE).when(claim).then(claimed)


def test_a_number_claimed_twice_for_one_order_is_claimed_once() -> None:
    given(PAYMENT_REFERENCE, claimed).when(claim).then_nothing()


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        (pi_reference("YT", "PI-2026-7"), "The PI number PI-2026-7 was already used"),
        (capture_reference("paypal", "3C6:79"), "The payment 3C6:79 was already used"),
        ("3C679", "was already used for another order"),
        ("pi:3C679", "was already used for another order"),
    ],
)
def test_a_number_of_another_order_is_refused(reference: str, named: str) -> None:
    taken = but(claimed, reference=reference)
    given(PAYMENT_REFERENCE, taken).when(but(claim, reference=reference, order_id="order-2")).then_refused(
        PaymentReferenceTaken, saying=named
    )


def test_the_second_of_two_orders_that_claim_a_number_at_once_is_refused() -> None:
    given(PAYMENT_REFERENCE).when(but(claim, order_id="order-2")).losing_to(claim).then_refused(
        PaymentReferenceTaken, saying="give the number of this payment"
    )


def test_pi_numbers_are_case_insensitive() -> None:
    assert but(place_offline, pi_number="pi-2026-7") == place_offline


def test_two_sellers_or_providers_may_use_the_same_number() -> None:
    assert pi_reference("YT", "7") != pi_reference("XT", "7")
    assert capture_reference("paypal", "7") != capture_reference("card", "7")
