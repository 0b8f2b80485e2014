"""What may this account use?"""

from __future__ import annotations

from datetime import date
from typing import Any

from domain.allocation import CapacityAllocated
from domain.services import Plan
from infra.recorded import Recorded
from projections.entitlements import ENTITLEMENTS, Entitlement, EntitlementRow, entitlements
from tests.support.examples import (
    activated,
    allocated,
    expanded,
    factory_created,
    factory_removed,
    factory_upgraded,
    granted,
    released,
    reversed_,
    shop_created,
    subscribed,
    withdrawn,
)
from tests.support.given_domain import but
from tests.support.given_projection import Given, given, recorded

YEARS_END = date(2027, 1, 1)
PACKAGE = given(ENTITLEMENTS, activated)


def row(service: str, total: int, allocated: int = 0, *, flat: bool = False) -> EntitlementRow:
    return EntitlementRow("pkg-acme", service, "acme", flat, total, allocated, YEARS_END)


def answer(shown: Given) -> dict[str, tuple[int, int, int, int]]:
    """Total, allocated, available and over-allocated units by service."""
    rows = shown.projection.folded(shown.history).of(EntitlementRow)
    return {
        line.service: (line.total, line.allocated, line.available, line.over_allocated) for line in entitlements(rows)
    }


# --- what a package has --------------------------------------------------------------------------------------------


def test_a_package_begins_with_its_first_capacity() -> None:
    given(ENTITLEMENTS).when(activated).then(
        {"pkg-acme/extensions": row("extensions", 100), "pkg-acme/ultimate_plan": row("ultimate_plan", 20)}
    )


def test_an_order_expands_a_service() -> None:
    PACKAGE.when(expanded("extensions", 50)).then({"pkg-acme/extensions": {"total": 150}})


def test_an_order_adds_a_new_service_until_the_package_ends() -> None:
    PACKAGE.when(expanded("recording_minutes", 1_000)).then(
        {"pkg-acme/recording_minutes": row("recording_minutes", 1_000)}
    )


def test_a_flat_service_is_on() -> None:
    PACKAGE.when(subscribed("custom_domain")).then({"pkg-acme/custom_domain": row("custom_domain", 1, flat=True)})


def test_a_reversed_grant_withdraws_units_and_switches_services_off() -> None:
    shown = PACKAGE.after([expanded("extensions", 50), expanded("ultimate_plan", 20), subscribed("custom_domain")])
    shown.when(reversed_("order-1", "custom_domain", extensions=50, ultimate_plan=20)).then(
        {
            "pkg-acme/extensions": {"total": 100},
            "pkg-acme/ultimate_plan": {"total": 20},
            "pkg-acme/custom_domain": {"total": 0},
        }
    )


def test_a_flat_service_that_is_off_can_be_on_again() -> None:
    shown = PACKAGE.after([subscribed("custom_domain"), reversed_("order-1", "custom_domain")])
    shown.when(subscribed("custom_domain", "order-2")).then({"pkg-acme/custom_domain": {"total": 1}})


# --- what PBXs hold ------------------------------------------------------------------------------------------------


def test_an_enterprise_pbx_holds_extensions() -> None:
    PACKAGE.when(factory_created).then({"pkg-acme/extensions": {"allocated": 60}})


def test_an_ultimate_pbx_holds_extensions_of_the_ultimate_share() -> None:
    PACKAGE.when(shop_created).then(
        {"pkg-acme/extensions": {"allocated": 15}, "pkg-acme/ultimate_plan": {"allocated": 15}}
    )


def test_a_pbx_gets_more_and_releases_some() -> None:
    shown = PACKAGE.after([factory_created]).when(allocated).then({"pkg-acme/extensions": {"allocated": 80}})
    shown.when(released).then({"pkg-acme/extensions": {"allocated": 70}})


def test_an_ultimate_pbx_gets_more_and_releases_some_in_both_shares() -> None:
    ultimate = but(allocated, pbx_id="pbx-shop", plan=Plan.ULTIMATE, quantity=5, drawn=5)
    shown = PACKAGE.after([shop_created])
    shown = shown.when(ultimate).then(
        {"pkg-acme/extensions": {"allocated": 20}, "pkg-acme/ultimate_plan": {"allocated": 20}}
    )
    shown.when(but(released, pbx_id="pbx-shop", plan=Plan.ULTIMATE)).then(
        {"pkg-acme/extensions": {"allocated": 10}, "pkg-acme/ultimate_plan": {"allocated": 10}}
    )


def test_only_recording_minutes_beyond_the_free_ones_count() -> None:
    minutes = but(allocated, service="recording_minutes", quantity=700, drawn=200)
    shown = PACKAGE.after([expanded("recording_minutes", 1_000), factory_created])
    shown.when(minutes).then({"pkg-acme/recording_minutes": {"allocated": 200}})


def test_an_upgrade_moves_the_extensions_into_the_ultimate_share() -> None:
    shown = PACKAGE.after([expanded("ultimate_plan", 60), factory_created])
    shown = shown.when(factory_upgraded).then(
        {"pkg-acme/ultimate_plan": {"allocated": 60}, "pkg-acme/extensions": {"over_allocated": 0}}
    )
    assert answer(shown)["enterprise_plan"] == (20, 0, 20, 0)


def test_a_removed_pbx_returns_all_that_it_drew() -> None:
    minutes = CapacityAllocated(
        **allocated.model_dump(exclude={"service", "quantity", "drawn"}),
        service="recording_minutes",
        quantity=700,
        drawn=200,
    )
    shown = PACKAGE.after([expanded("recording_minutes", 1_000), factory_created, minutes])
    shown.when(but(factory_removed, released={"extensions": 60, "recording_minutes": 200})).then(
        {"pkg-acme/extensions": {"allocated": 0}, "pkg-acme/recording_minutes": {"allocated": 0}}
    )


def test_a_removed_ultimate_pbx_returns_both_shares() -> None:
    shown = PACKAGE.after([shop_created])
    shown.when(but(factory_removed, pbx_id="pbx-shop", plan=Plan.ULTIMATE, released={"extensions": 15})).then(
        {"pkg-acme/extensions": {"allocated": 0}, "pkg-acme/ultimate_plan": {"allocated": 0}}
    )


def test_grants_to_the_pool_are_already_known_from_the_package() -> None:
    PACKAGE.when(granted, withdrawn).then_nothing()


# --- the answer ----------------------------------------------------------------------------------------------------


def test_100_extensions_with_20_ultimate_are_80_enterprise_and_20_ultimate() -> None:
    assert answer(PACKAGE) == {
        "extensions": (100, 0, 100, 0),
        "enterprise_plan": (80, 0, 80, 0),
        "ultimate_plan": (20, 0, 20, 0),
    }


def test_each_pbx_counts_in_its_own_share() -> None:
    assert answer(PACKAGE.after([factory_created, shop_created])) == {
        "extensions": (100, 75, 25, 0),
        "enterprise_plan": (80, 60, 20, 0),
        "ultimate_plan": (20, 15, 5, 0),
    }


def test_without_the_ultimate_plan_all_extensions_are_enterprise() -> None:
    shown = given(ENTITLEMENTS, but(activated, quantities={"extensions": 100}), factory_created)
    assert answer(shown) == {"extensions": (100, 60, 40, 0), "enterprise_plan": (100, 60, 40, 0)}


def test_after_a_refund_the_units_of_pbxs_are_over_allocated_and_none_are_available() -> None:
    shown = PACKAGE.after(
        [
            expanded("extensions", 50),
            expanded("ultimate_plan", 20),
            but(factory_created, extensions=110),
            but(shop_created, extensions=30),
            reversed_("order-1", extensions=50, ultimate_plan=20),
        ]
    )
    assert answer(shown) == {
        "extensions": (100, 140, 0, 40),
        "enterprise_plan": (80, 110, 0, 30),
        "ultimate_plan": (20, 30, 0, 10),
    }


def test_the_answer_begins_with_the_size_of_the_package_and_ends_with_flat_services() -> None:
    shown = PACKAGE.after(
        [subscribed("custom_domain"), expanded("recording_minutes", 1), subscribed("ycm_white_label")]
    )
    rows = shown.projection.folded(shown.history).of(EntitlementRow)
    lines = entitlements(rows)
    assert [(line.service, line.flat) for line in lines] == [
        ("extensions", False),
        ("enterprise_plan", False),
        ("recording_minutes", False),
        ("ultimate_plan", False),
        ("custom_domain", True),
        ("ycm_white_label", True),
    ]
    assert lines[1] == Entitlement("pkg-acme", "enterprise_plan", False, 80, 0, 80, 0, YEARS_END)


def test_an_account_with_two_packages_sees_each_separately() -> None:
    second = but(activated, package_id="pkg-acme-2", quantities={"extensions": 7})
    shown = PACKAGE.after([second, factory_created])
    lines = entitlements(shown.projection.folded(shown.history).of(EntitlementRow))
    assert [(line.package_id, line.service, line.total, line.allocated) for line in lines] == [
        ("pkg-acme", "extensions", 100, 60),
        ("pkg-acme", "enterprise_plan", 80, 60),
        ("pkg-acme", "ultimate_plan", 20, 0),
        ("pkg-acme-2", "extensions", 7, 0),
        ("pkg-acme-2", "enterprise_plan", 7, 0),
    ]


def test_an_account_without_a_package_may_use_nothing() -> None:
    assert entitlements([]) == []


def test_the_events_of_one_package_are_one_partition() -> None:
    events: list[Recorded[Any]] = [recorded(event, 1) for event in (activated, expanded("extensions", 1))]
    assert {ENTITLEMENTS.partition(event) for event in events} == {"pkg-acme"}
