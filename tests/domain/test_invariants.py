"""Invariants that hold after every single event."""

from collections import Counter

import hypothesis
from hypothesis import strategies as st

from domain.allocation import (
    ALLOCATION,
    Allocation,
    AllocationCommand,
    AllocationEvent,
    CapacityAllocated,
    CapacityReleased,
    GrantCapacity,
    PbxCreated,
    PbxRemoved,
    WithdrawCapacity,
)
from domain.invoice import credit_of
from domain.invoice_link import INVOICE_LINK, InvoiceLinkCommand, LinkConsumed
from domain.invoice_series import INVOICE_SERIES, InvoiceNumberAssigned
from domain.order import (
    ORDER,
    OrderCommand,
    OrderFulfilled,
    PaymentCaptured,
    PaymentRefunded,
    PaymentSetAside,
    Status,
)
from domain.quote import Quote
from domain.services import Plan
from domain.subscription import SUBSCRIPTION, SubscriptionCommand
from tests.support import strategies as some
from tests.support.examples import assign, granted, reverse
from tests.support.given_domain import but, given

# --- the package ---------------------------------------------------------------------------------------------------


@hypothesis.given(some.subscription.sequences())
def test_the_ultimate_plan_is_never_larger_than_what_it_is_carved_out_of(commands: list[SubscriptionCommand]) -> None:
    package = given(SUBSCRIPTION)
    for command in commands:
        outcome = package.when(command)
        state = package.state
        for event in outcome.events:
            state = SUBSCRIPTION.evolve(state, event)
            assert 0 <= state.totals.get("ultimate_plan", 0) <= state.totals.get("extensions", 0)
            assert min(state.totals.values(), default=0) >= 0
        package = outcome.after


@hypothesis.given(some.subscription.sequences(), st.permutations(["order-1", "order-2", "order-3", "order-4"]))
def test_a_package_returns_to_its_first_state_once_every_order_is_reversed(
    commands: list[SubscriptionCommand], order_ids: list[str]
) -> None:
    package = given(SUBSCRIPTION)
    for command in commands:
        package = package.when(command).after
    for order_id in order_ids:
        package = package.when(but(reverse, order_id=order_id, services=tuple(some.SERVICES))).after
    first = package.state.activated.quantities if package.state.activated else {}
    assert {service: total for service, total in package.state.totals.items() if total} == first
    assert package.state.flat == {}


# --- the pool ------------------------------------------------------------------------------------------------------


def excess(pool: Allocation) -> Counter[str]:
    """The number of units by which a service, or a plan's share, is over-allocated."""
    services = {service for pbx in pool.pbxs.values() for service in pbx.drawn}
    over = Counter({service: pool.allocated(service) - pool.totals.get(service, 0) for service in services})
    over.update({plan.value: pool.allocated("extensions", plan) - pool.share(plan) for plan in Plan})
    return +over


def may_exceed(command: AllocationCommand) -> bool:
    """Whether a command shrinks a total, or carves more Ultimate out of the same extensions."""
    return isinstance(command, WithdrawCapacity) or (
        isinstance(command, GrantCapacity) and "ultimate_plan" in command.quantities
    )


@hypothesis.given(some.allocation.sequences(most=25))
def test_no_allocation_exceeds_a_service_or_a_share(commands: list[AllocationCommand]) -> None:
    pool = given(ALLOCATION)
    for command in commands:
        after = pool.when(command).after
        if not may_exceed(command):
            assert excess(after.state) <= excess(pool.state)
        pool = after


@hypothesis.given(some.allocation.sequences(most=25))
def test_a_pool_whose_totals_only_grow_is_never_oversold(commands: list[AllocationCommand]) -> None:
    pool = given(ALLOCATION, granted)
    for command in commands:
        if not may_exceed(command):
            pool = pool.when(command).after
            assert not excess(pool.state)


def drawn_by(event: AllocationEvent) -> Counter[str]:
    """Units that an event drew from the pool; negative if it returned them."""
    match event:
        case PbxCreated():
            return Counter({"extensions": event.extensions})
        case CapacityAllocated():
            return Counter({event.service: event.drawn})
        case CapacityReleased():
            return Counter({event.service: -event.quantity})
        case PbxRemoved():
            return Counter({service: -quantity for service, quantity in event.released.items()})
        case _:
            return Counter()


@hypothesis.given(some.allocation.sequences(most=25))
def test_the_units_drawn_by_events_equal_the_units_that_pbxs_hold(commands: list[AllocationCommand]) -> None:
    pool, ledger = given(ALLOCATION), Counter[str]()
    for command in commands:
        outcome = pool.when(command)
        for event in outcome.events:
            ledger.update(drawn_by(event))
        pool = outcome.after
        assert {service: n for service, n in ledger.items() if n} == {
            service: pool.state.allocated(service) for service in ledger if pool.state.allocated(service)
        }


@hypothesis.given(some.allocation.sequences(most=25))
def test_a_pbx_has_an_extension_at_least_its_free_minutes_and_at_most_one_high_availability(
    commands: list[AllocationCommand],
) -> None:
    pool = given(ALLOCATION)
    for command in commands:
        pool = pool.when(command).after
        for pbx in pool.state.pbxs.values():
            assert pbx.drawn["extensions"] >= 1
            assert pbx.drawn.get("high_availability", 0) <= 1
            assert pbx.drawn.get("recording_minutes", 0) == max(0, pbx.assigned.get("recording_minutes", 0) - 500)


# --- the order -----------------------------------------------------------------------------------------------------


@hypothesis.given(some.order.sequences(most=20))
def test_an_order_is_paid_and_fulfilled_once_at_most_and_no_money_is_dropped_or_counted_twice(
    commands: list[OrderCommand],
) -> None:
    order, money, fulfilments = given(ORDER), dict[str, int](), 0
    for command in commands:
        outcome = order.when(command)
        for event in outcome.events:
            match event:
                case PaymentCaptured():
                    assert order.state.captured is None
                    assert event.amount == order.state.require("order-1").quote.total
                    assert event.capture_id not in money
                    money[event.capture_id] = event.amount.amount_minor
                case PaymentRefunded():
                    money[event.capture_id] -= event.amount.amount_minor
                    assert money[event.capture_id] == outcome.after.state.refundable_minor >= 0
                case PaymentSetAside():
                    assert money.setdefault(event.capture_id, event.amount.amount_minor) is not None
                case OrderFulfilled():
                    fulfilments += 1
                    assert order.state.captured
                    assert order.state.status is not Status.REFUNDED
                case _:
                    pass
        order = outcome.after
        assert order.state.payments == set(money)
        assert fulfilments == order.state.fulfilled <= 1
        assert not (order.state.fulfilled and order.state.unfulfillable)


# --- money ---------------------------------------------------------------------------------------------------------


@hypothesis.given(some.any_quotes())
def test_the_lines_and_the_tax_add_up_to_the_total(summary: Quote) -> None:
    lines = sum(line.amount_minor for line in summary.lines)
    assert summary.total.amount_minor == lines + sum(tax.tax_minor for tax in summary.taxes)
    assert lines == summary.net.amount_minor == sum(tax.net_minor for tax in summary.taxes)
    for line in summary.lines:
        whole = line.unit_price_minor * line.quantity
        days = (1, 1) if line.one_time else (line.days_remaining, line.days_of_term)
        assert abs(line.amount_minor * days[1] - whole * days[0]) * 2 <= days[1]
        assert line.amount_minor <= whole
    for tax in summary.taxes:
        assert abs(tax.tax_minor * 10_000 - tax.net_minor * tax.rate_bp) * 2 <= 10_000


@hypothesis.given(some.any_quotes().filter(lambda summary: summary.total.amount_minor > 0), st.data())
def test_a_credit_note_equals_its_refund_exactly_and_no_part_of_it_is_negative(
    summary: Quote, data: st.DataObject
) -> None:
    refund = data.draw(st.integers(1, summary.total.amount_minor))
    net, taxes = credit_of(summary, but(summary.total, amount_minor=refund))
    assert net.amount_minor + sum(tax.tax_minor for tax in taxes) == refund
    assert net.amount_minor == sum(tax.net_minor for tax in taxes)
    assert min(min(tax.net_minor, tax.tax_minor) for tax in taxes) >= 0
    assert credit_of(summary, summary.total) == (summary.net, summary.taxes)


# --- the invoice ---------------------------------------------------------------------------------------------------


@hypothesis.given(st.lists(st.integers(0, 3), max_size=40) | st.lists(st.integers(0, 3), min_size=60, max_size=90))
def test_invoice_numbers_have_no_gap_in_any_interleaving_of_issuers(turns: list[int]) -> None:
    """Four issuers read, decide and append in any interleaving; the log refuses decisions on a stale version."""
    log: list[InvoiceNumberAssigned] = []
    decided: dict[int, tuple[int, list[InvoiceNumberAssigned]]] = {}
    issued: Counter[int] = Counter()
    for issuer in turns:
        if issuer not in decided:
            document = but(assign, document_id=f"invoice-{issuer}-{issued[issuer]}")
            decided[issuer] = len(log), given(INVOICE_SERIES, *log).when(document).events
            continue
        version, events = decided.pop(issuer)
        if version == len(log):
            log += events
            issued[issuer] += 1
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    assert len({event.document_id for event in log}) == len(log) == issued.total()


@hypothesis.given(some.invoice_link.sequences(most=20))
def test_a_link_serves_the_invoice_at_most_once(commands: list[InvoiceLinkCommand]) -> None:
    link, consumed = given(INVOICE_LINK), 0
    for command in commands:
        outcome = link.when(command)
        consumed += sum(isinstance(event, LinkConsumed) for event in outcome.events)
        link = outcome.after
    assert consumed <= 1
