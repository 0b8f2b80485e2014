"""The pool here: 80 Enterprise and 20 Ultimate extensions, 1,000 recording minutes, 2 units of High Availability.

The factory is an Enterprise PBX with 60 extensions, the shop an Ultimate one with 15.
"""

import pytest

from domain.allocation import (
    ALLOCATION,
    AllocateCapacity,
    AlreadyHighlyAvailable,
    CapacityAllocated,
    CreatePbx,
    NotReleasable,
    PbxExists,
    PoolExhausted,
    ReleaseCapacity,
    ServiceNotForPbxs,
    UltimateNotAllocatable,
    UnitsNotPossible,
    UnknownPbx,
    UnknownPool,
)
from domain.messages import Refusal
from domain.services import Plan
from tests.support.examples import (
    allocate,
    allocated,
    create_factory,
    create_shop,
    factory_created,
    factory_removed,
    factory_upgraded,
    grant,
    granted,
    release,
    released,
    remove,
    shop_created,
    upgrade,
    withdraw,
    withdrawn,
)
from tests.support.given_domain import but, given

BUILT = (granted, factory_created, shop_created)


def give(service: str, quantity: int, allocation_id: str = "allocation-1") -> AllocateCapacity:
    return but(allocate, service=service, quantity=quantity, allocation_id=allocation_id)


def gave(
    service: str, quantity: int, drawn: int | None = None, allocation_id: str = "allocation-1"
) -> CapacityAllocated:
    drawn = quantity if drawn is None else drawn
    return but(allocated, service=service, quantity=quantity, drawn=drawn, allocation_id=allocation_id)


# --- grants and withdrawals ----------------------------------------------------------------------------------------


def test_a_pool_holds_what_it_was_granted() -> None:
    pool = given(ALLOCATION).when(grant).then(granted).state
    assert (pool.share(Plan.ENTERPRISE), pool.share(Plan.ULTIMATE)) == (80, 20)
    assert pool.available("recording_minutes", Plan.ENTERPRISE) == 1_000


def test_grants_add_up() -> None:
    more = but(grant, grant_id="order-1", quantities={"extensions": 50, "transcription_minutes": 600})
    pool = (
        given(ALLOCATION, granted)
        .when(more)
        .then(but(granted, grant_id="order-1", quantities={"extensions": 50, "transcription_minutes": 600}))
    )
    assert pool.state.totals["extensions"] == 150
    assert pool.state.totals["transcription_minutes"] == 600


def test_a_grant_made_twice_is_made_once() -> None:
    given(ALLOCATION, granted).when(grant).then_nothing()


def test_a_grant_made_twice_at_once_is_made_once() -> None:
    given(ALLOCATION).when(grant).losing_to(grant).then_nothing()


def test_a_refund_shrinks_the_pool() -> None:
    pool = given(ALLOCATION, granted).when(withdraw).then(withdrawn).state
    assert (pool.share(Plan.ENTERPRISE), pool.share(Plan.ULTIMATE)) == (60, 10)


def test_a_withdrawal_made_twice_is_made_once() -> None:
    given(ALLOCATION, granted, withdrawn).when(withdraw).then_nothing()


def test_a_withdrawal_made_twice_at_once_is_made_once() -> None:
    given(ALLOCATION, granted).when(withdraw).losing_to(withdraw).then_nothing()


def test_a_withdrawal_takes_nothing_from_a_pbx_but_blocks_new_allocations() -> None:
    pool = given(ALLOCATION, *BUILT).when(withdraw).then(withdrawn)
    assert pool.state.allocated("extensions") == 75
    assert pool.state.available("extensions", Plan.ENTERPRISE) == -5
    assert pool.state.available("extensions", Plan.ULTIMATE) == -5
    pool.when(give("extensions", 1)).then_refused(PoolExhausted, saying="more than the 0 left in the pool")


def test_a_grant_and_a_withdrawal_may_share_an_id() -> None:
    given(ALLOCATION, but(granted, grant_id="one-id")).when(but(withdraw, withdrawal_id="one-id")).then(
        but(withdrawn, withdrawal_id="one-id")
    ).when(but(grant, grant_id="one-id")).then_nothing()


def test_an_allocation_and_a_release_may_share_an_id() -> None:
    given(ALLOCATION, *BUILT, but(allocated, allocation_id="one-id")).when(but(release, release_id="one-id")).then(
        but(released, release_id="one-id")
    ).when(but(allocate, allocation_id="one-id")).then_nothing()


# --- creation ------------------------------------------------------------------------------------------------------


def test_a_pbx_draws_its_extensions_from_the_share_of_its_plan() -> None:
    pool = given(ALLOCATION, granted).when(create_factory).then(factory_created)
    pool = pool.when(create_shop).then(shop_created)
    assert pool.state.available("extensions", Plan.ENTERPRISE) == 20
    assert pool.state.available("extensions", Plan.ULTIMATE) == 5


def test_a_pbx_created_twice_is_created_once() -> None:
    given(ALLOCATION, *BUILT).when(create_factory).then_nothing()


def test_a_pbx_that_has_since_been_upgraded_or_removed_is_not_created_again() -> None:
    given(ALLOCATION, *BUILT, factory_upgraded).when(create_factory).then_nothing()
    given(ALLOCATION, *BUILT, factory_removed).when(create_factory).then_nothing()


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        (but(create_factory, account_id="slugworth"), UnknownPool, "no package pkg-acme in account slugworth"),
        (but(create_factory, extensions=61), PbxExists, "The PBX id pbx-factory is taken"),
        (but(create_factory, pbx_id="pbx-2", extensions=0), UnitsNotPossible, "0 is not a valid quantity"),
        (but(create_factory, pbx_id="pbx-2", extensions=-1), UnitsNotPossible, "-1 is not a valid quantity"),
        (but(create_factory, pbx_id="pbx-2", extensions=1_000_001), UnitsNotPossible, "use 1 to 1,000,000"),
        (
            but(create_factory, pbx_id="pbx-2", extensions=21),
            PoolExhausted,
            "21 enterprise extensions are more than the 20 left",
        ),
        (
            but(create_shop, pbx_id="pbx-2", extensions=6),
            PoolExhausted,
            "6 ultimate extensions are more than the 5 left",
        ),
    ],
)
def test_an_impossible_pbx_is_refused(wrong: CreatePbx, reason: type[Refusal], sentence: str) -> None:
    given(ALLOCATION, *BUILT).when(wrong).then_refused(reason, saying=sentence)


def test_the_id_of_a_removed_pbx_is_not_given_to_another() -> None:
    given(ALLOCATION, *BUILT, factory_removed).when(but(create_factory, name="Other")).then_refused(
        PbxExists, saying="choose another"
    )


def test_a_pbx_needs_a_package() -> None:
    given(ALLOCATION).when(create_factory).then_refused(UnknownPool, saying="name one of the account's own packages")


def test_the_last_extension_of_a_share_can_be_allocated() -> None:
    last = but(create_factory, pbx_id="pbx-2", extensions=20)
    given(ALLOCATION, *BUILT).when(last).then(but(factory_created, pbx_id="pbx-2", extensions=20))


def test_the_second_of_two_pbxs_that_claim_the_last_extensions_at_once_is_refused() -> None:
    rival = but(create_factory, pbx_id="pbx-2", extensions=21)
    given(ALLOCATION, granted).when(rival).losing_to(create_factory).then_refused(
        PoolExhausted, saying="21 enterprise extensions are more than the 20 left in the pool"
    )


# --- allocation ----------------------------------------------------------------------------------------------------


def test_a_pbx_gets_more_extensions() -> None:
    pool = given(ALLOCATION, *BUILT).when(allocate).then(allocated).state
    assert pool.pbx("pbx-factory").assigned == {"extensions": 80}
    assert pool.available("extensions", Plan.ENTERPRISE) == 0


def test_capacity_allocated_twice_is_allocated_once() -> None:
    given(ALLOCATION, *BUILT, allocated).when(allocate).then_nothing()


def test_the_same_quantity_can_be_allocated_again_under_a_new_id() -> None:
    ten, ten_more = give("extensions", 10, "allocation-1"), give("extensions", 10, "allocation-2")
    given(ALLOCATION, *BUILT).when(ten).then(gave("extensions", 10)).when(ten_more).then(
        gave("extensions", 10, allocation_id="allocation-2")
    )


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        (but(allocate, account_id="slugworth"), UnknownPool, "no package pkg-acme in account slugworth"),
        (but(allocate, pbx_id="pbx-2"), UnknownPbx, "no PBX pbx-2; its PBXs are pbx-factory, pbx-shop"),
        (give("extensions", 0), UnitsNotPossible, "0 is not a valid quantity"),
        (give("recording_minutes", -1), UnitsNotPossible, "-1 is not a valid quantity of recording_minutes"),
        (give("recording_minutes", 1_000_001), UnitsNotPossible, "use 1 to 1,000,000"),
        (give("ultimate_plan", 1), UltimateNotAllocatable, "upgrade the PBX instead"),
        (give("custom_domain", 1), ServiceNotForPbxs, "The pool has no custom_domain; it has extensions"),
        (give("extensions", 21), PoolExhausted, "21 enterprise extensions are more than the 20 left"),
        (
            but(give("extensions", 6), pbx_id="pbx-shop"),
            PoolExhausted,
            "6 ultimate extensions are more than the 5 left",
        ),
        (give("recording_minutes", 1_501), PoolExhausted, "1001 recording_minutes are more than the 1000 left"),
        (give("high_availability", 2), AlreadyHighlyAvailable, "at most one unit of High Availability"),
    ],
)
def test_an_impossible_allocation_is_refused(wrong: AllocateCapacity, reason: type[Refusal], sentence: str) -> None:
    given(ALLOCATION, *BUILT).when(wrong).then_refused(reason, saying=sentence)


def test_a_refusal_says_that_a_package_has_no_pbx_yet() -> None:
    given(ALLOCATION, granted).when(allocate).then_refused(UnknownPbx, saying="its PBXs are none yet")


@pytest.mark.parametrize(
    ("held", "quantity", "drawn"),
    [
        (0, 500, 0),  # the first 500 are free
        (0, 501, 1),
        (0, 1_500, 1_000),
        (300, 200, 0),
        (300, 201, 1),
        (500, 1, 1),
        (600, 100, 100),
    ],
)
def test_only_the_recording_minutes_beyond_the_free_500_draw_on_the_pool(held: int, quantity: int, drawn: int) -> None:
    history = [gave("recording_minutes", held, max(0, held - 500), "allocation-0")] if held else []
    given(ALLOCATION, *BUILT, *history).when(give("recording_minutes", quantity)).then(
        gave("recording_minutes", quantity, drawn)
    )


def test_every_pbx_has_its_own_free_minutes_even_if_the_pool_has_none() -> None:
    bare = but(granted, quantities={"extensions": 100, "ultimate_plan": 20})
    pool = given(ALLOCATION, bare, factory_created, shop_created)
    pool.when(give("recording_minutes", 500)).then(gave("recording_minutes", 500, 0)).when(
        but(give("recording_minutes", 500, "allocation-2"), pbx_id="pbx-shop")
    ).then(but(gave("recording_minutes", 500, 0, "allocation-2"), pbx_id="pbx-shop", plan=Plan.ULTIMATE)).when(
        give("recording_minutes", 1, "allocation-3")
    ).then_refused(PoolExhausted, saying="more than the 0 left")


def test_a_pbx_takes_one_unit_of_high_availability() -> None:
    given(ALLOCATION, *BUILT).when(give("high_availability", 1)).then(gave("high_availability", 1)).when(
        give("high_availability", 1, "allocation-2")
    ).then_refused(AlreadyHighlyAvailable, saying="The PBX pbx-factory takes at most one unit")


def test_the_second_of_two_allocations_of_the_last_extensions_at_once_is_refused() -> None:
    given(ALLOCATION, *BUILT).when(give("extensions", 1, "allocation-2")).losing_to(allocate).then_refused(
        PoolExhausted, saying="1 enterprise extensions are more than the 0 left in the pool"
    )


def test_an_allocation_that_loses_to_a_refund_is_refused() -> None:
    given(ALLOCATION, *BUILT).when(allocate).losing_to(withdraw).then_refused(PoolExhausted, saying="the 0 left")


def test_an_allocation_delivered_twice_at_once_is_made_once() -> None:
    given(ALLOCATION, *BUILT).when(allocate).losing_to(allocate).then_nothing()


def test_an_allocation_that_loses_to_an_upgrade_draws_on_the_other_share() -> None:
    grown = but(granted, grant_id="order-1", quantities={"extensions": 60, "ultimate_plan": 65})
    five = give("extensions", 5)
    given(ALLOCATION, *BUILT, grown).when(five).losing_to(upgrade).then(but(gave("extensions", 5), plan=Plan.ULTIMATE))


# --- release -------------------------------------------------------------------------------------------------------


def test_a_pbx_releases_extensions() -> None:
    pool = given(ALLOCATION, *BUILT).when(release).then(released).state
    assert pool.available("extensions", Plan.ENTERPRISE) == 30


def test_capacity_released_twice_is_released_once() -> None:
    given(ALLOCATION, *BUILT, released).when(release).then_nothing()


def test_a_pbx_keeps_one_extension() -> None:
    given(ALLOCATION, *BUILT).when(but(release, quantity=59)).then(but(released, quantity=59))


def test_high_availability_can_be_released_and_allocated_again() -> None:
    back = but(release, service="high_availability", quantity=1)
    given(ALLOCATION, *BUILT, gave("high_availability", 1)).when(back).then(
        but(released, service="high_availability", quantity=1)
    ).when(give("high_availability", 1, "allocation-2")).then(
        gave("high_availability", 1, allocation_id="allocation-2")
    )


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        (but(release, account_id="slugworth"), UnknownPool, "no package pkg-acme in account slugworth"),
        (but(release, pbx_id="pbx-2"), UnknownPbx, "no PBX pbx-2"),
        (but(release, quantity=0), UnitsNotPossible, "0 is not a valid quantity"),
        (but(release, quantity=-1), UnitsNotPossible, "-1 is not a valid quantity of extensions"),
        (but(release, quantity=1_000_001), UnitsNotPossible, "use 1 to 1,000,000"),
        (but(release, quantity=60), NotReleasable, "holds 60 extensions and can release at most 59"),
        (but(release, service="high_availability", quantity=1), NotReleasable, "holds 0 high_availability"),
        (but(release, service="ultimate_plan", quantity=1), NotReleasable, "holds 0 ultimate_plan"),
        (but(release, service="recording_minutes"), NotReleasable, "cannot be released"),
    ],
)
def test_an_impossible_release_is_refused(wrong: ReleaseCapacity, reason: type[Refusal], sentence: str) -> None:
    given(ALLOCATION, *BUILT, gave("recording_minutes", 700, 200)).when(wrong).then_refused(reason, saying=sentence)


def test_the_second_of_two_releases_at_once_leaves_one_extension_too() -> None:
    most = but(release, release_id="release-2", quantity=59)
    given(ALLOCATION, *BUILT).when(most).losing_to(release).then_refused(NotReleasable, saying="at most 49")


# --- upgrade -------------------------------------------------------------------------------------------------------

ROOM_FOR_THE_FACTORY = but(granted, grant_id="order-1", quantities={"ultimate_plan": 55})


def test_an_upgrade_moves_a_pbx_from_one_share_to_the_other() -> None:
    pool = given(ALLOCATION, *BUILT, ROOM_FOR_THE_FACTORY).when(upgrade).then(factory_upgraded).state
    assert pool.pbx("pbx-factory").plan is Plan.ULTIMATE
    assert pool.available("extensions", Plan.ULTIMATE) == 0
    assert pool.available("extensions", Plan.ENTERPRISE) == 25
    assert pool.allocated("extensions") == 75


def test_an_upgrade_moves_the_extensions_that_the_pbx_has_now() -> None:
    given(ALLOCATION, *BUILT, ROOM_FOR_THE_FACTORY, released).when(upgrade).then(but(factory_upgraded, extensions=50))


def test_a_pbx_upgraded_twice_is_upgraded_once() -> None:
    given(ALLOCATION, *BUILT, ROOM_FOR_THE_FACTORY, factory_upgraded).when(upgrade).then_nothing()
    given(ALLOCATION, *BUILT).when(but(upgrade, pbx_id="pbx-shop")).then_nothing()


def test_an_upgrade_beyond_the_share_of_the_ultimate_plan_is_refused() -> None:
    one_short = but(ROOM_FOR_THE_FACTORY, quantities={"ultimate_plan": 54})
    given(ALLOCATION, *BUILT, one_short).when(upgrade).then_refused(
        PoolExhausted, saying="has 60 extensions, but only 59 of the Ultimate Plan are left"
    )


def test_an_upgrade_in_an_over_allocated_share_says_that_nothing_is_left() -> None:
    given(ALLOCATION, *BUILT, withdrawn).when(upgrade).then_refused(PoolExhausted, saying="only 0 of the Ultimate")


def test_an_unknown_pbx_is_not_upgraded() -> None:
    given(ALLOCATION, *BUILT).when(but(upgrade, pbx_id="pbx-2")).then_refused(UnknownPbx, saying="no PBX pbx-2")


def test_a_pbx_of_another_account_is_not_upgraded() -> None:
    given(ALLOCATION, *BUILT).when(but(upgrade, account_id="slugworth")).then_refused(UnknownPool, saying="slugworth")


def test_an_upgrade_that_loses_the_share_to_a_new_pbx_is_refused() -> None:
    rival = but(create_shop, pbx_id="pbx-2", extensions=1)
    given(ALLOCATION, *BUILT, ROOM_FOR_THE_FACTORY).when(upgrade).losing_to(rival).then_refused(
        PoolExhausted, saying="59 of the Ultimate Plan are left"
    )


# --- removal -------------------------------------------------------------------------------------------------------


def test_a_removed_pbx_returns_what_it_had_drawn() -> None:
    history = (*BUILT, gave("recording_minutes", 700, 200, "allocation-2"), gave("high_availability", 1))
    gone = but(factory_removed, released={"extensions": 60, "recording_minutes": 200, "high_availability": 1})
    pool = given(ALLOCATION, *history).when(remove).then(gone).state
    assert list(pool.pbxs) == ["pbx-shop"]
    assert pool.available("extensions", Plan.ENTERPRISE) == 80
    assert pool.available("recording_minutes", Plan.ENTERPRISE) == 1_000
    assert pool.available("high_availability", Plan.ENTERPRISE) == 2


def test_free_units_do_not_return_to_the_pool() -> None:
    given(ALLOCATION, *BUILT, gave("recording_minutes", 400, 0)).when(remove).then(factory_removed)


def test_a_removed_pbx_may_have_drawn_more_than_one_order_can_give() -> None:
    million = {"recording_minutes": 1_000_000}
    history = (
        *BUILT,
        but(granted, grant_id="order-1", quantities=million),
        but(granted, grant_id="order-2", quantities=million),
        gave("recording_minutes", 1_000_000, 999_500, "allocation-1"),
        gave("recording_minutes", 1_000_000, 1_000_000, "allocation-2"),
    )
    given(ALLOCATION, *history).when(remove).then(
        but(factory_removed, released={"extensions": 60, "recording_minutes": 1_999_500})
    )


def test_a_pbx_removed_twice_is_removed_once() -> None:
    given(ALLOCATION, *BUILT, factory_removed).when(remove).then_nothing()


def test_an_unknown_pbx_is_not_removed() -> None:
    given(ALLOCATION, *BUILT).when(but(remove, pbx_id="pbx-2")).then_refused(UnknownPbx, saying="no PBX pbx-2")


def test_a_pbx_of_another_account_is_not_removed() -> None:
    given(ALLOCATION, *BUILT).when(but(remove, account_id="slugworth")).then_refused(UnknownPool, saying="slugworth")


def test_a_removal_that_loses_to_an_upgrade_returns_units_to_the_other_share() -> None:
    given(ALLOCATION, *BUILT, ROOM_FOR_THE_FACTORY).when(remove).losing_to(upgrade).then(
        but(factory_removed, plan=Plan.ULTIMATE)
    )


@pytest.mark.parametrize("late", [allocate, release])
def test_a_command_that_loses_to_a_removal_is_refused(late: AllocateCapacity | ReleaseCapacity) -> None:
    given(ALLOCATION, *BUILT).when(late).losing_to(remove).then_refused(UnknownPbx, saying="no PBX pbx-factory")
