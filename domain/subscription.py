"""A hosting package: its term, its units of each service, and the orders that granted them.

Renewal, scheduled decreases, reminders, suspension and the end of a package will be events of this aggregate too
(`PackageRenewed`, `DecreaseScheduled`, `ExpiryReminded`, `PackageSuspended`, `PackageEnded`); they do not exist yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, assert_never

from pydantic import Field

from domain.messages import Command, Decider, Event, Identifier, Refusal
from domain.quote import UNITS_MAX, Line, Term
from domain.services import EXTENSIONS, ULTIMATE_PLAN, Pricing, ServiceCode

Quantities = Mapping[ServiceCode, Annotated[int, Field(strict=True, ge=1, le=UNITS_MAX)]]
"""Units by service; services without units are left out."""


class PackageActivated(Event):
    """A hosting package began, with its first capacity."""

    TOPIC: ClassVar[str] = "subscription.PackageActivated.v1"
    package_id: Identifier
    account_id: Identifier
    term: Term
    quantities: Quantities


class CapacityExpanded(Event):
    """A paid order added units of a service to the package."""

    TOPIC: ClassVar[str] = "subscription.CapacityExpanded.v1"
    package_id: Identifier
    order_id: Identifier
    service: ServiceCode
    quantity: int


class ServiceSubscribed(Event):
    """A paid order switched a flat service on."""

    TOPIC: ClassVar[str] = "subscription.ServiceSubscribed.v1"
    package_id: Identifier
    order_id: Identifier
    service: ServiceCode


class GrantReversed(Event):
    """The grant of an order was reversed after its refund.

    ``withdrawn`` includes Ultimate units of other orders if the extensions that they were carved out of are gone.
    """

    TOPIC: ClassVar[str] = "subscription.GrantReversed.v1"
    package_id: Identifier
    order_id: Identifier
    withdrawn: Quantities
    switched_off: tuple[ServiceCode, ...]


SubscriptionEvent = PackageActivated | CapacityExpanded | ServiceSubscribed | GrantReversed


class ActivatePackage(Command):
    """Begin a hosting package for an account."""

    package_id: Identifier
    account_id: Identifier
    term: Term
    quantities: Quantities


class ExpandPackage(Command):
    """Grant the package what an order paid for."""

    package_id: Identifier
    order_id: Identifier
    lines: tuple[Line, ...]


class ReverseGrant(Command):
    """Reverse the grant of an order for ``services``."""

    package_id: Identifier
    order_id: Identifier
    services: tuple[ServiceCode, ...]


SubscriptionCommand = ActivatePackage | ExpandPackage | ReverseGrant


@dataclass(frozen=True)
class Subscription:
    """A package, folded from its events; ``activated`` is None if the package does not exist."""

    activated: PackageActivated | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    flat: Mapping[str, str] = field(default_factory=dict)
    grants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def require(self, package_id: str, account_id: str | None = None) -> PackageActivated:
        """Return the event that activated the package.

        Raises:
            UnknownPackage: no package has this id, or it belongs to another account (which the answer does not reveal).
        """
        if self.activated is None or account_id not in (None, self.activated.account_id):
            owner = f" in account {account_id}" if account_id else ""
            raise UnknownPackage(f"There is no package {package_id}{owner}; name one of the account's own packages.")
        return self.activated

    def admit(self, lines: Sequence[Line]) -> None:
        """Check that the package can take these lines: before an order is binding, and again when it is paid.

        Raises:
            UltimateExceedsExtensions: the Ultimate Plan would have more extensions than the package.
            ServiceAlreadyActive: a flat service is already active.
        """
        after = dict(self.totals)
        for line in lines:
            if line.pricing is Pricing.QUANTITY:
                after[line.service] = after.get(line.service, 0) + line.quantity
            elif line.service in self.flat:
                raise ServiceAlreadyActive(f"{line.service} is already active; it cannot be subscribed to twice.")
        _carve_out(after)


class UnknownPackage(Refusal):
    """The account has no such package."""


class PackageExists(Refusal):
    """Another package has this id."""


class PackageNotPossible(Refusal):
    """A package without days or without extensions."""


class UltimateExceedsExtensions(Refusal):
    """The Ultimate Plan is a carve-out of the package's extensions and cannot exceed them."""


class ServiceAlreadyActive(Refusal):
    """A flat service can be active only once."""


def _carve_out(totals: Mapping[str, int]) -> None:
    ultimate, extensions = totals.get(ULTIMATE_PLAN, 0), totals.get(EXTENSIONS, 0)
    if ultimate > extensions:
        raise UltimateExceedsExtensions(
            f"{ultimate} extensions on the Ultimate Plan are more than the package's {extensions}; "
            f"choose at most {extensions} in all, or add extensions too."
        )


def decide(command: SubscriptionCommand, package: Subscription) -> list[SubscriptionEvent]:
    """The package's next events.

    Raises:
        Refusal: the command breaks a rule; the subclasses above are the reasons.
    """
    match command:
        case ActivatePackage():
            return _activate(command, package)
        case ExpandPackage():
            return _expand(command, package)
        case ReverseGrant():
            return _reverse(command, package)
        case _:
            assert_never(command)


def _activate(command: ActivatePackage, package: Subscription) -> list[SubscriptionEvent]:
    activated = PackageActivated.model_validate(command.model_dump(exclude={"at"}))
    if package.activated == activated:
        return []
    if package.activated:
        raise PackageExists(f"The package {command.package_id} already exists; choose another id.")
    if command.term.days < 1:
        raise PackageNotPossible(
            f"A term from {command.term.starts_on} to {command.term.ends_on} has no days; choose a later end."
        )
    if EXTENSIONS not in command.quantities:
        raise PackageNotPossible("A package needs at least one extension; say how many.")
    _carve_out(command.quantities)
    return [activated]


def _expand(command: ExpandPackage, package: Subscription) -> list[SubscriptionEvent]:
    package.require(command.package_id)
    if command.order_id in package.grants:
        return []
    package.admit(command.lines)
    # Extensions first, so that the carve-out fits after every single event.
    lines = sorted(command.lines, key=lambda line: line.service != EXTENSIONS)
    who = {"package_id": command.package_id, "order_id": command.order_id}
    return [
        CapacityExpanded(**who, service=line.service, quantity=line.quantity)
        if line.pricing is Pricing.QUANTITY
        else ServiceSubscribed(**who, service=line.service)
        for line in lines
    ]


def _reverse(command: ReverseGrant, package: Subscription) -> list[SubscriptionEvent]:
    granted = package.grants.get(command.order_id, {})
    withdrawn = {service: granted[service] for service in command.services if granted.get(service)}
    off = tuple(service for service in command.services if package.flat.get(service) == command.order_id)
    if not withdrawn and not off:
        return []
    left = {service: total - withdrawn.get(service, 0) for service, total in package.totals.items()}
    orphaned = max(0, left.get(ULTIMATE_PLAN, 0) - left.get(EXTENSIONS, 0))
    if orphaned:
        withdrawn[ULTIMATE_PLAN] = withdrawn.get(ULTIMATE_PLAN, 0) + orphaned
    return [
        GrantReversed(package_id=command.package_id, order_id=command.order_id, withdrawn=withdrawn, switched_off=off)
    ]


def evolve(package: Subscription, event: SubscriptionEvent) -> Subscription:
    """The package after one more event."""
    match event:
        case PackageActivated():
            return replace(package, activated=event, totals=dict(event.quantities))
        case CapacityExpanded():
            total = package.totals.get(event.service, 0) + event.quantity
            granted = {**package.grants.get(event.order_id, {}), event.service: event.quantity}
            return replace(
                package,
                totals={**package.totals, event.service: total},
                grants={**package.grants, event.order_id: granted},
            )
        case ServiceSubscribed():
            return replace(
                package,
                flat={**package.flat, event.service: event.order_id},
                grants={**package.grants, event.order_id: package.grants.get(event.order_id, {})},
            )
        case GrantReversed():
            return _taken_back(package, event)
        case _:
            assert_never(event)


def _taken_back(package: Subscription, event: GrantReversed) -> Subscription:
    grants = dict(package.grants)
    for service, withdrawn in event.withdrawn.items():
        left = withdrawn
        # The order's own units first, then those of the latest orders, so that no unit is taken back twice.
        for order_id in (event.order_id, *reversed(list(package.grants))):
            granted = grants.get(order_id, {})
            taken = min(left, granted.get(service, 0))
            if taken:
                grants[order_id] = {**granted, service: granted[service] - taken}
                left -= taken
    return replace(
        package,
        totals={service: total - event.withdrawn.get(service, 0) for service, total in package.totals.items()},
        flat={service: order for service, order in package.flat.items() if service not in event.switched_off},
        grants=grants,
    )


SUBSCRIPTION: Decider[SubscriptionCommand, Subscription, SubscriptionEvent] = Decider(
    "subscription", Subscription(), decide, evolve
)
