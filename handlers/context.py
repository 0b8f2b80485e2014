"""The context of one request: who sends it, why, and the events that it recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import tenacity

from domain.messages import Refusal
from handlers.dependencies import Dependencies
from infra.event_log.log import VersionConflict
from infra.event_log.recorder import InboxEntry
from infra.event_log.unit_of_work import UnitOfWork
from infra.recorded import Cause, Recorded


class Role(StrEnum):
    """What an actor is to us."""

    PARTNER = "partner"
    DISTRIBUTOR = "distributor"
    ACCOUNT_MANAGER = "account_manager"
    ADMIN = "admin"
    SERVICE = "service"
    SYSTEM = "system"


SELLERS = frozenset({Role.ADMIN, Role.SYSTEM})
CUSTOMERS = frozenset({Role.PARTNER, Role.SERVICE}) | SELLERS
COLLECTORS = frozenset({Role.DISTRIBUTOR, Role.ACCOUNT_MANAGER})
US = frozenset({Role.SYSTEM})


@dataclass(frozen=True)
class Actor:
    """Who sends a request. A partner acts for one account, its own."""

    role: Role
    name: str
    account_id: str | None = None

    def __str__(self) -> str:
        return f"{self.role}:{self.name}"


SYSTEM = Actor(Role.SYSTEM, "trunkline")

retry_on_conflict = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(VersionConflict),
    wait=tenacity.wait_random(0, 0.05),
    stop=tenacity.stop_after_attempt(30),
    reraise=True,
)
"""Call a function, and again on a `VersionConflict`, so that it loads and decides again."""


class NotPermitted(Refusal):
    """The role of the actor does not permit this."""


@dataclass
class RequestContext:
    """One request: who sends it, why and when, and the events that it recorded."""

    dependencies: Dependencies
    actor: Actor
    correlation_id: str
    causation_id: str | None = None
    received: InboxEntry | None = None
    recorded: list[Recorded] = field(default_factory=list)
    committed: bool = False

    @property
    def now(self) -> datetime:
        """The present time, by the injected clock."""
        return self.dependencies.clock.now()

    def work(self, *, use_cache: bool = False) -> UnitOfWork:
        """Return a new unit of work on the log; see `UnitOfWork` for ``use_cache``."""
        return UnitOfWork(self.dependencies.log, use_cache=use_cache)

    def commit(self, work: UnitOfWork, account_id: str | None) -> Sequence[Recorded]:
        """Append the decisions of a unit of work, with the actor as their cause. A request is one commit."""
        cause = Cause(str(self.actor), self.correlation_id, self.causation_id)
        recorded = work.commit(account_id=account_id, cause=cause, at=self.now, received=self.received)
        self.recorded.extend(recorded)
        self.committed = True
        return recorded
