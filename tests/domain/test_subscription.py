from datetime import date

import pytest

from domain.messages import Refusal
from domain.quote import Term
from domain.subscription import (
    SUBSCRIPTION,
    ActivatePackage,
    ExpandPackage,
    PackageExists,
    PackageNotPossible,
    ReverseGrant,
    ServiceAlreadyActive,
    UltimateExceedsExtensions,
    UnknownPackage,
)
from tests.support.examples import (
    TODAY,
    YEAR,
    activate,
    activated,
    expand,
    expanded,
    lines,
    reverse,
    reversed_,
    subscribed,
)
from tests.support.given_domain import but, given

EXPANDED = (expanded("extensions", 50), expanded("ultimate_plan", 20), subscribed("custom_domain"))


def order(number: int, **quantities: int) -> ExpandPackage:
    """What order-1, order-2 and so on paid for."""
    return but(expand, order_id=f"order-{number}", lines=lines(**quantities))


def take_back(number: int, *services: str) -> ReverseGrant:
    """The refunds of services of order-1, order-2 and so on."""
    return but(reverse, order_id=f"order-{number}", services=services)


# --- a package begins ----------------------------------------------------------------------------------------------


def test_a_package_begins_with_its_first_capacity() -> None:
    package = given(SUBSCRIPTION).when(activate).then(activated)
    assert package.state.totals == {"extensions": 100, "ultimate_plan": 20}


def test_a_package_activated_twice_is_activated_once() -> None:
    given(SUBSCRIPTION, activated, *EXPANDED).when(activate).then_nothing()


@pytest.mark.parametrize(
    "another",
    [
        but(activate, account_id="slugworth"),
        but(activate, quantities={"extensions": 101}),
        but(activate, term=Term(starts_on=TODAY, ends_on=date(2027, 10, 20))),
    ],
)
def test_a_package_id_belongs_to_one_package(another: ActivatePackage) -> None:
    given(SUBSCRIPTION, activated).when(another).then_refused(PackageExists, saying="choose another id")


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        (but(activate, term=Term(starts_on=TODAY, ends_on=TODAY)), PackageNotPossible, "has no days"),
        (but(activate, term=Term(starts_on=YEAR.ends_on, ends_on=YEAR.starts_on)), PackageNotPossible, "has no days"),
        (but(activate, quantities={"recording_minutes": 500}), PackageNotPossible, "at least one extension"),
        (but(activate, quantities={}), PackageNotPossible, "at least one extension"),
        (
            but(activate, quantities={"extensions": 100, "ultimate_plan": 101}),
            UltimateExceedsExtensions,
            "101 extensions on the Ultimate Plan are more than the package's 100",
        ),
    ],
)
def test_an_impossible_package_is_refused(wrong: ActivatePackage, reason: type[Refusal], sentence: str) -> None:
    given(SUBSCRIPTION).when(wrong).then_refused(reason, saying=sentence)


def test_a_whole_package_may_be_ultimate() -> None:
    ultimate = {"extensions": 100, "ultimate_plan": 100}
    given(SUBSCRIPTION).when(but(activate, quantities=ultimate)).then(but(activated, quantities=ultimate))


def test_the_second_of_two_packages_that_claim_an_id_at_once_is_refused() -> None:
    given(SUBSCRIPTION).when(but(activate, account_id="slugworth")).losing_to(activate).then_refused(
        PackageExists, saying="The package pkg-acme already exists"
    )


# --- an order is fulfilled -----------------------------------------------------------------------------------------


def test_a_paid_order_expands_the_package_and_switches_services_on() -> None:
    package = given(SUBSCRIPTION, activated).when(expand).then(*EXPANDED)
    assert package.state.totals == {"extensions": 150, "ultimate_plan": 40}
    assert package.state.flat == {"custom_domain": "order-1"}


def test_extensions_come_before_the_ultimate_plan_that_is_carved_out_of_them() -> None:
    ultimate_first = but(expand, lines=lines(ultimate_plan=100, custom_domain=1, extensions=50))
    given(SUBSCRIPTION, activated).when(ultimate_first).then(
        expanded("extensions", 50), expanded("ultimate_plan", 100), subscribed("custom_domain")
    )


def test_an_order_fulfilled_twice_is_fulfilled_once() -> None:
    given(SUBSCRIPTION, activated, *EXPANDED).when(expand).then_nothing()


def test_an_order_of_a_flat_service_alone_is_fulfilled_once() -> None:
    given(SUBSCRIPTION, activated).when(order(1, custom_domain=1)).then(subscribed("custom_domain")).when(
        order(1, custom_domain=1)
    ).then_nothing()


def test_a_reversed_order_is_not_fulfilled_again() -> None:
    taken_back = reversed_("order-1", "custom_domain", extensions=50, ultimate_plan=20)
    given(SUBSCRIPTION, activated, *EXPANDED, taken_back).when(expand).then_nothing()


def test_an_unknown_package_is_not_expanded() -> None:
    given(SUBSCRIPTION).when(expand).then_refused(UnknownPackage, saying="There is no package pkg-acme")


def test_the_package_of_another_account_is_unknown() -> None:
    package = given(SUBSCRIPTION, activated).state
    assert package.require("pkg-acme", "acme") == activated
    with pytest.raises(UnknownPackage, match="There is no package pkg-acme in account slugworth"):
        package.require("pkg-acme", "slugworth")


def test_more_ultimate_than_extensions_is_refused() -> None:
    given(SUBSCRIPTION, activated).when(order(1, ultimate_plan=81)).then_refused(
        UltimateExceedsExtensions, saying="101 extensions on the Ultimate Plan are more than the package's 100"
    )


def test_as_much_ultimate_as_there_are_extensions_is_not_refused() -> None:
    given(SUBSCRIPTION, activated).when(order(1, ultimate_plan=80)).then(expanded("ultimate_plan", 80))


def test_a_flat_service_is_on_at_most_once() -> None:
    given(SUBSCRIPTION, activated, subscribed("custom_domain", "order-1")).when(order(2, custom_domain=1)).then_refused(
        ServiceAlreadyActive, saying="custom_domain is already active"
    )


def test_a_refused_order_changes_nothing() -> None:
    package = given(SUBSCRIPTION, activated, subscribed("custom_domain", "order-1"))
    refused = package.when(order(2, extensions=50, custom_domain=1)).then_refused(ServiceAlreadyActive, saying="twice")
    assert refused.state == package.state


def test_two_orders_paid_at_once_both_expand_the_package() -> None:
    package = given(SUBSCRIPTION, activated).when(order(2, extensions=5)).losing_to(order(1, extensions=50))
    assert package.then(expanded("extensions", 5, "order-2")).state.totals["extensions"] == 155


def test_the_second_of_two_orders_of_a_flat_service_paid_at_once_is_refused() -> None:
    given(SUBSCRIPTION, activated).when(order(2, custom_domain=1)).losing_to(order(1, custom_domain=1)).then_refused(
        ServiceAlreadyActive, saying="it cannot be subscribed to twice"
    )


def test_the_second_of_two_orders_of_the_last_ultimate_paid_at_once_is_refused() -> None:
    given(SUBSCRIPTION, activated).when(order(2, ultimate_plan=50)).losing_to(order(1, ultimate_plan=50)).then_refused(
        UltimateExceedsExtensions, saying="120 extensions on the Ultimate Plan"
    )


def test_an_order_delivered_twice_at_once_is_fulfilled_once() -> None:
    given(SUBSCRIPTION, activated).when(expand).losing_to(expand).then_nothing()


# --- an order is refunded ------------------------------------------------------------------------------------------


def test_a_refund_reverses_the_grant_of_the_order() -> None:
    package = (
        given(SUBSCRIPTION, activated, *EXPANDED)
        .when(reverse)
        .then(reversed_("order-1", "custom_domain", extensions=50, ultimate_plan=20))
    )
    assert package.state.totals == {"extensions": 100, "ultimate_plan": 20}
    assert package.state.flat == {}


def test_a_partial_refund_reverses_that_part() -> None:
    package = (
        given(SUBSCRIPTION, activated, *EXPANDED)
        .when(take_back(1, "ultimate_plan"))
        .then(reversed_("order-1", ultimate_plan=20))
    )
    assert package.state.flat == {"custom_domain": "order-1"}
    package.when(reverse).then(reversed_("order-1", "custom_domain", extensions=50))


def test_a_grant_reversed_twice_is_reversed_once() -> None:
    taken_back = reversed_("order-1", "custom_domain", extensions=50, ultimate_plan=20)
    given(SUBSCRIPTION, activated, *EXPANDED, taken_back).when(reverse).then_nothing()


def test_an_order_that_granted_nothing_has_nothing_to_reverse() -> None:
    given(SUBSCRIPTION, activated).when(reverse).then_nothing()
    given(SUBSCRIPTION).when(reverse).then_nothing()


def test_a_service_that_another_order_switched_on_stays_on() -> None:
    given(SUBSCRIPTION, activated, *EXPANDED).when(take_back(2, "custom_domain")).then_nothing()


def test_a_flat_service_can_be_subscribed_to_again_after_its_refund() -> None:
    given(SUBSCRIPTION, activated, subscribed("custom_domain"), reversed_("order-1", "custom_domain")).when(
        order(2, custom_domain=1)
    ).then(subscribed("custom_domain", "order-2"))


def test_withdrawn_extensions_take_their_ultimate_carve_out_with_them() -> None:
    package = given(SUBSCRIPTION, activated, expanded("extensions", 50), expanded("ultimate_plan", 130, "order-2"))
    after = package.when(take_back(1, "extensions")).then(reversed_("order-1", extensions=50, ultimate_plan=50))
    assert after.state.totals == {"extensions": 100, "ultimate_plan": 100}


def test_ultimate_withdrawn_with_its_extensions_is_not_withdrawn_again() -> None:
    package = given(
        SUBSCRIPTION,
        activated,
        expanded("extensions", 50, "order-1"),
        expanded("ultimate_plan", 130, "order-2"),
        reversed_("order-1", extensions=50, ultimate_plan=50),
    )
    after = package.when(take_back(2, "ultimate_plan")).then(reversed_("order-2", ultimate_plan=80))
    assert after.state.totals == {"extensions": 100, "ultimate_plan": 20}


def test_the_orders_own_ultimate_is_withdrawn_first_and_then_the_latest_orders() -> None:
    package = given(
        SUBSCRIPTION,
        activated,
        expanded("ultimate_plan", 30, "order-1"),
        expanded("extensions", 50, "order-2"),
        expanded("ultimate_plan", 40, "order-2"),
        expanded("ultimate_plan", 60, "order-3"),
        reversed_("order-2", extensions=50, ultimate_plan=50),
    )
    package.when(take_back(2, "ultimate_plan")).then_nothing()
    package.when(take_back(3, "ultimate_plan")).then(reversed_("order-3", ultimate_plan=50))
    package.when(take_back(1, "ultimate_plan")).then(reversed_("order-1", ultimate_plan=30))


def test_the_rest_of_an_orders_own_ultimate_can_still_be_withdrawn() -> None:
    package = given(
        SUBSCRIPTION,
        activated,
        expanded("extensions", 50),
        expanded("ultimate_plan", 100),
        reversed_("order-1", extensions=50, ultimate_plan=20),
    )
    after = package.when(take_back(1, "ultimate_plan")).then(reversed_("order-1", ultimate_plan=80))
    assert after.state.totals == {"extensions": 100, "ultimate_plan": 20}


def test_a_refund_delivered_twice_at_once_is_reversed_once() -> None:
    given(SUBSCRIPTION, activated, *EXPANDED).when(reverse).losing_to(reverse).then_nothing()


def test_an_order_that_loses_its_extensions_to_a_refund_is_refused() -> None:
    package = given(SUBSCRIPTION, activated, expanded("extensions", 50))
    package.when(order(2, ultimate_plan=130)).losing_to(take_back(1, "extensions")).then_refused(
        UltimateExceedsExtensions, saying="150 extensions on the Ultimate Plan are more than the package's 100"
    )
