"""The capacity pool of a hosting package: how much was granted, and how much of it each PBX holds.

Enterprise and Ultimate extensions are two shares of one total: ``enterprise = extensions - ultimate_plan`` is derived,
never stored. All extensions of a PBX are on its plan and draw on that plan's share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, assert_never

from pydantic import Field, PlainSerializer, PlainValidator
from rpds import HashTrieSet

from domain.messages import Command, Decider, Event, Identifier, Refusal, Text
from domain.quote import UNITS_MAX
from domain.services import (
    EXTENSIONS,
    FREE_RECORDING_MINUTES_PER_PBX,
    HIGH_AVAILABILITY,
    RECORDING_MINUTES,
    ULTIMATE_PLAN,
    Plan,
    ServiceCode,
)
from domain.subscription import Quantities

Units = Annotated[int, Field(strict=True)]
Drawn = Mapping[ServiceCode, Annotated[int, Field(strict=True, ge=1)]]
"""Units that a PBX drew from the pool, by service. Several orders add up, so it may exceed the maximum of one order."""


class CapacityGranted(Event):
    """The pool grew by the package's activation or by an order; ``grant_id`` is the id of that package or order."""

    TOPIC: ClassVar[str] = "allocation.CapacityGranted.v1"
    package_id: Identifier
    account_id: Identifier
    grant_id: Identifier
    quantities: Quantities


class CapacityWithdrawn(Event):
    """The pool shrank after a refund. PBXs keep what they hold, so the pool may now be over-allocated."""

    TOPIC: ClassVar[str] = "allocation.CapacityWithdrawn.v1"
    package_id: Identifier
    withdrawal_id: Identifier
    quantities: Quantities


class PbxCreated(Event):
    """A PBX was created with extensions from its plan's share."""

    TOPIC: ClassVar[str] = "allocation.PbxCreated.v1"
    package_id: Identifier
    pbx_id: Identifier
    name: Text
    plan: Plan
    extensions: int


class CapacityAllocated(Event):
    """A PBX received more units of a service; ``drawn`` of them came from the pool, the rest is free with every PBX."""

    TOPIC: ClassVar[str] = "allocation.CapacityAllocated.v1"
    package_id: Identifier
    pbx_id: Identifier
    allocation_id: Identifier
    plan: Plan
    service: ServiceCode
    quantity: int
    drawn: int


class CapacityReleased(Event):
    """A PBX returned units of a service to the pool."""

    TOPIC: ClassVar[str] = "allocation.CapacityReleased.v1"
    package_id: Identifier
    pbx_id: Identifier
    release_id: Identifier
    plan: Plan
    service: ServiceCode
    quantity: int


class PbxUpgraded(Event):
    """A PBX moved from Enterprise to Ultimate, and its extensions moved from one share to the other."""

    TOPIC: ClassVar[str] = "allocation.PbxUpgraded.v1"
    package_id: Identifier
    pbx_id: Identifier
    extensions: int


class PbxRemoved(Event):
    """A PBX was removed; the units that it had drawn returned to the pool."""

    TOPIC: ClassVar[str] = "allocation.PbxRemoved.v1"
    package_id: Identifier
    pbx_id: Identifier
    plan: Plan
    released: Drawn


AllocationEvent = (
    CapacityGranted | CapacityWithdrawn | PbxCreated | CapacityAllocated | CapacityReleased | PbxUpgraded | PbxRemoved
)


class GrantCapacity(Command):
    """Put capacity into the pool."""

    package_id: Identifier
    account_id: Identifier
    grant_id: Identifier
    quantities: Quantities


class WithdrawCapacity(Command):
    """Take capacity out of the pool, allocated or not."""

    package_id: Identifier
    withdrawal_id: Identifier
    quantities: Quantities


class CreatePbx(Command):
    """Create a PBX on a plan, with extensions."""

    account_id: Identifier
    package_id: Identifier
    pbx_id: Identifier
    name: Text
    plan: Plan
    extensions: Units


class AllocateCapacity(Command):
    """Give a PBX more of a service. ``allocation_id`` makes the command safe to repeat."""

    account_id: Identifier
    package_id: Identifier
    pbx_id: Identifier
    allocation_id: Identifier
    service: ServiceCode
    quantity: Units


class ReleaseCapacity(Command):
    """Return units of a service from a PBX to the pool. ``release_id`` makes the command safe to repeat."""

    account_id: Identifier
    package_id: Identifier
    pbx_id: Identifier
    release_id: Identifier
    service: ServiceCode
    quantity: Units


class UpgradePbx(Command):
    """Move a PBX from Enterprise to Ultimate, effective immediately."""

    account_id: Identifier
    package_id: Identifier
    pbx_id: Identifier


class RemovePbx(Command):
    """Remove a PBX."""

    account_id: Identifier
    package_id: Identifier
    pbx_id: Identifier


AllocationCommand = (
    GrantCapacity | WithdrawCapacity | CreatePbx | AllocateCapacity | ReleaseCapacity | UpgradePbx | RemovePbx
)


@dataclass(frozen=True)
class Pbx:
    """A PBX: its plan and its units by service. Only the ``drawn`` part of ``assigned`` came from the pool."""

    name: str
    plan: Plan
    assigned: Mapping[str, int]
    drawn: Mapping[str, int]

    def with_more(self, service: str, assigned: int, drawn: int) -> Pbx:
        """The PBX with more of a service, or less if the numbers are negative."""
        return replace(
            self,
            assigned={**self.assigned, service: self.assigned.get(service, 0) + assigned},
            drawn={**self.drawn, service: self.drawn.get(service, 0) + drawn},
        )


if TYPE_CHECKING:
    _Ids = HashTrieSet[tuple[str, str]]
else:
    _Ids = HashTrieSet  # not subscriptable at run time
Done = Annotated[
    _Ids,
    PlainValidator(lambda pairs: HashTrieSet(map(tuple, pairs)), json_schema_input_type=list[tuple[str, str]]),
    PlainSerializer(sorted, return_type=list[tuple[str, str]]),
]
"""A persistent set: a pool may have 100,000 events, each adds an id, and a Python set would be copied each time."""


@dataclass(frozen=True)
class Allocation:
    """A pool, folded from its events; ``account_id`` is None if the package does not exist.

    ``done`` holds idempotency keys, each with its event's topic: callers choose the ids, so a release must not pass
    for a repeated allocation of the same id.
    """

    account_id: str | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    pbxs: Mapping[str, Pbx] = field(default_factory=dict)
    created: Mapping[str, PbxCreated] = field(default_factory=dict)
    done: Done = field(default_factory=HashTrieSet)

    def allocated(self, service: str, plan: Plan | None = None) -> int:
        """Units of a service that PBXs drew from the pool; only the PBXs of ``plan``, if given."""
        return sum(pbx.drawn.get(service, 0) for pbx in self.pbxs.values() if plan in (None, pbx.plan))

    def share(self, plan: Plan) -> int:
        """The number of extensions of a plan, allocated or not."""
        ultimate = self.totals.get(ULTIMATE_PLAN, 0)
        return ultimate if plan is Plan.ULTIMATE else self.totals.get(EXTENSIONS, 0) - ultimate

    def available(self, service: str, plan: Plan) -> int:
        """Units of a service that a PBX of ``plan`` can still draw; negative if the pool is over-allocated."""
        free = self.totals.get(service, 0) - self.allocated(service)
        if service != EXTENSIONS:
            return free
        return min(free, self.share(plan) - self.allocated(EXTENSIONS, plan))

    def pbx(self, pbx_id: str) -> Pbx:
        """Return a PBX of the package.

        Raises:
            UnknownPbx: the package has no such PBX.
        """
        if pbx_id not in self.pbxs:
            raise UnknownPbx(f"The package has no PBX {pbx_id}; its PBXs are {', '.join(self.pbxs) or 'none yet'}.")
        return self.pbxs[pbx_id]


class UnknownPool(Refusal):
    """The account has no such package."""


class UnknownPbx(Refusal):
    """The package has no such PBX."""


class PbxExists(Refusal):
    """Another PBX has, or had, this id."""


class PoolExhausted(Refusal):
    """The pool, or the plan's share of it, has too few units left."""


class UnitsNotPossible(Refusal):
    """A quantity below one or above the maximum."""


class ServiceNotForPbxs(Refusal):
    """The pool never held this service."""


class AlreadyHighlyAvailable(Refusal):
    """A PBX takes at most one unit of High Availability."""


class NotReleasable(Refusal):
    """The PBX holds fewer units than that, or must keep them."""


class UltimateNotAllocatable(Refusal):
    """The Ultimate Plan applies to a whole PBX, by creation or upgrade; its units cannot be allocated one by one."""


def decide(command: AllocationCommand, pool: Allocation) -> list[AllocationEvent]:
    """The pool's next events.

    Raises:
        Refusal: the command breaks a rule; the subclasses above are the reasons.
    """
    match command:
        case GrantCapacity():
            if (CapacityGranted.TOPIC, command.grant_id) in pool.done:
                return []
            return [CapacityGranted.model_validate(command.model_dump(exclude={"at"}))]
        case WithdrawCapacity():
            if (CapacityWithdrawn.TOPIC, command.withdrawal_id) in pool.done:
                return []
            return [CapacityWithdrawn.model_validate(command.model_dump(exclude={"at"}))]
        case _:
            _require(command, pool)
    match command:
        case CreatePbx():
            return _create(command, pool)
        case AllocateCapacity():
            return _allocate(command, pool)
        case ReleaseCapacity():
            return _release(command, pool)
        case UpgradePbx():
            return _upgrade(command, pool)
        case RemovePbx():
            if command.pbx_id in pool.created and command.pbx_id not in pool.pbxs:
                return []
            pbx = pool.pbx(command.pbx_id)
            released = {service: drawn for service, drawn in pbx.drawn.items() if drawn}
            who = {"package_id": command.package_id, "pbx_id": command.pbx_id}
            return [PbxRemoved(**who, plan=pbx.plan, released=released)]
        case _:
            assert_never(command)


def _require(
    command: CreatePbx | AllocateCapacity | ReleaseCapacity | UpgradePbx | RemovePbx, pool: Allocation
) -> None:
    if pool.account_id != command.account_id:
        raise UnknownPool(
            f"There is no package {command.package_id} in account {command.account_id}; "
            "name one of the account's own packages."
        )


def _possible(quantity: int, service: str) -> None:
    if not 1 <= quantity <= UNITS_MAX:
        raise UnitsNotPossible(f"{quantity} is not a valid quantity of {service}; use 1 to {UNITS_MAX:,}.")


def _create(command: CreatePbx, pool: Allocation) -> list[AllocationEvent]:
    created = PbxCreated.model_validate(command.model_dump(exclude={"at", "account_id"}))
    standing = pool.created.get(command.pbx_id)
    if standing == created:
        return []
    if standing:
        raise PbxExists(f"The PBX id {command.pbx_id} is taken; choose another.")
    _possible(command.extensions, EXTENSIONS)
    _enough(pool, EXTENSIONS, command.plan, command.extensions)
    return [created]


def _enough(pool: Allocation, service: str, plan: Plan, quantity: int) -> None:
    available = max(0, pool.available(service, plan))
    if quantity > available:
        what = f"{plan} extensions" if service == EXTENSIONS else service
        raise PoolExhausted(
            f"{quantity} {what} are more than the {available} left in the pool; expand the package or ask for less."
        )


def _allocate(command: AllocateCapacity, pool: Allocation) -> list[AllocationEvent]:
    if (CapacityAllocated.TOPIC, command.allocation_id) in pool.done:
        return []
    pbx = pool.pbx(command.pbx_id)
    _possible(command.quantity, command.service)
    if command.service == ULTIMATE_PLAN:
        raise UltimateNotAllocatable("The Ultimate Plan applies to a whole PBX; upgrade the PBX instead.")
    drawn = command.quantity
    if command.service == RECORDING_MINUTES:
        held = pbx.assigned.get(RECORDING_MINUTES, 0)
        beyond = max(0, held + command.quantity - FREE_RECORDING_MINUTES_PER_PBX)
        drawn = beyond - pbx.drawn.get(RECORDING_MINUTES, 0)
    elif command.service not in pool.totals:
        raise ServiceNotForPbxs(f"The pool has no {command.service}; it has {', '.join(pool.totals)}.")
    if command.service == HIGH_AVAILABILITY and pbx.drawn.get(HIGH_AVAILABILITY, 0) + command.quantity > 1:
        raise AlreadyHighlyAvailable(f"The PBX {command.pbx_id} takes at most one unit of High Availability.")
    _enough(pool, command.service, pbx.plan, drawn)
    return [CapacityAllocated(**command.model_dump(exclude={"at", "account_id"}), plan=pbx.plan, drawn=drawn)]


def _release(command: ReleaseCapacity, pool: Allocation) -> list[AllocationEvent]:
    if (CapacityReleased.TOPIC, command.release_id) in pool.done:
        return []
    pbx = pool.pbx(command.pbx_id)
    _possible(command.quantity, command.service)
    if command.service == RECORDING_MINUTES:
        raise NotReleasable("Recording minutes that are assigned to a PBX cannot be released.")
    held = pbx.drawn.get(command.service, 0)
    least = 1 if command.service == EXTENSIONS else 0
    if command.quantity > held - least:
        raise NotReleasable(
            f"The PBX {command.pbx_id} holds {held} {command.service} and can release at most {max(0, held - least)}."
        )
    return [CapacityReleased(**command.model_dump(exclude={"at", "account_id"}), plan=pbx.plan)]


def _upgrade(command: UpgradePbx, pool: Allocation) -> list[AllocationEvent]:
    pbx = pool.pbx(command.pbx_id)
    if pbx.plan is Plan.ULTIMATE:
        return []
    extensions = pbx.drawn[EXTENSIONS]
    left = max(0, pool.share(Plan.ULTIMATE) - pool.allocated(EXTENSIONS, Plan.ULTIMATE))
    if extensions > left:
        raise PoolExhausted(
            f"The PBX {command.pbx_id} has {extensions} extensions, but only {left} of the Ultimate Plan are left; "
            "subscribe to more first."
        )
    return [PbxUpgraded(package_id=command.package_id, pbx_id=command.pbx_id, extensions=extensions)]


def evolve(pool: Allocation, event: AllocationEvent) -> Allocation:
    """The pool after one more event."""
    match event:
        case CapacityGranted():
            grown = _plus(pool.totals, event.quantities, 1)
            done = pool.done.insert((CapacityGranted.TOPIC, event.grant_id))
            return replace(pool, account_id=event.account_id, totals=grown, done=done)
        case CapacityWithdrawn():
            shrunk = _plus(pool.totals, event.quantities, -1)
            return replace(pool, totals=shrunk, done=pool.done.insert((CapacityWithdrawn.TOPIC, event.withdrawal_id)))
        case PbxCreated():
            extensions = {EXTENSIONS: event.extensions}
            pbx = Pbx(name=event.name, plan=event.plan, assigned=extensions, drawn=extensions)
            return replace(pool, pbxs={**pool.pbxs, event.pbx_id: pbx}, created={**pool.created, event.pbx_id: event})
        case CapacityAllocated():
            return _changed(pool, event, event.allocation_id, event.quantity, event.drawn)
        case CapacityReleased():
            return _changed(pool, event, event.release_id, -event.quantity, -event.quantity)
        case PbxUpgraded():
            pbx = replace(pool.pbxs[event.pbx_id], plan=Plan.ULTIMATE)
            return replace(pool, pbxs={**pool.pbxs, event.pbx_id: pbx})
        case PbxRemoved():
            left = {pbx_id: pbx for pbx_id, pbx in pool.pbxs.items() if pbx_id != event.pbx_id}
            return replace(pool, pbxs=left)
        case _:
            assert_never(event)


def _plus(totals: Mapping[str, int], quantities: Mapping[str, int], sign: int) -> dict[str, int]:
    return {**totals, **{service: totals.get(service, 0) + sign * n for service, n in quantities.items()}}


def _changed(
    pool: Allocation, event: CapacityAllocated | CapacityReleased, done: str, assigned: int, drawn: int
) -> Allocation:
    pbx = pool.pbxs[event.pbx_id].with_more(event.service, assigned, drawn)
    return replace(pool, pbxs={**pool.pbxs, event.pbx_id: pbx}, done=pool.done.insert((event.TOPIC, done)))


ALLOCATION: Decider[AllocationCommand, Allocation, AllocationEvent] = Decider(
    "allocation", Allocation(), decide, evolve
)
