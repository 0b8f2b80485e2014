"""How fast read models catch up: 500 events a transaction, against one event a transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime

from benchmarks.measure import Measure, Void, in_turn
from domain.allocation import ALLOCATION, AllocateCapacity, CreatePbx, GrantCapacity
from domain.quote import Term
from domain.services import Plan
from domain.subscription import SUBSCRIPTION, ActivatePackage
from infra.embedded_postgres import embedded_postgres, temporary_directory
from infra.log import Log
from infra.postgres import connect, migrate
from infra.postgres_recorder import postgres_log
from infra.pydantic_mapper import Cause
from infra.unit_of_work import UnitOfWork
from projections.engine import catch_up, stored
from projections.entitlements import ENTITLEMENTS, EntitlementRow

PACKAGES = 40
PBXS = 12
NOW = datetime(2026, 3, 2, tzinfo=UTC)
TERM = Term(starts_on=date(2026, 3, 2), ends_on=date(2027, 3, 2))


def measures(rounds: int, done: Callable[[], object]) -> dict[str, Measure]:
    """Catching up the entitlements of one history, from nothing, again and again.

    Raises:
        Void: the tables are not what a replay in memory gives.
    """
    with temporary_directory() as directory, embedded_postgres(directory) as database_url:
        migrate(database_url)
        with postgres_log(database_url, master_key=bytes(32)) as log:
            _history(log)
            replayed = {row.key(): row for row in ENTITLEMENTS.folded(log.history()).of(EntitlementRow)}

            def rate(batch: int) -> float:
                with connect(database_url) as conn:
                    conn.execute("DELETE FROM read.positions")
                    conn.execute("DELETE FROM read.entitlements")
                    begun = time.perf_counter()
                    while catch_up(conn, log, ENTITLEMENTS, batch)[1]:
                        continue
                    took = time.perf_counter() - begun
                    if {row.key(): row for row in stored(conn, EntitlementRow)} != replayed:
                        raise Void("the table is not what a replay gives")
                return log.head() / took

            measure = in_turn(rounds, lambda: rate(500), lambda: rate(1), done, floor=5, aim=20)
    return {"catch_up_500_vs_1": measure}


def _history(log: Log) -> None:
    """Packages with their PBXs: one unit of work a package."""
    for number in range(PACKAGES):
        package = f"pkg-{number}"
        work = UnitOfWork(log)
        quantities = {"extensions": 10 * PBXS, "ultimate_plan": PBXS, "recording_minutes": 1_000 * PBXS}
        who = {"package_id": package, "account_id": f"account-{number}"}
        work.do(SUBSCRIPTION, package, ActivatePackage(at=NOW, **who, term=TERM, quantities=quantities))
        work.do(ALLOCATION, package, GrantCapacity(at=NOW, **who, grant_id=package, quantities=quantities))
        for command in _pbxs(package, who):
            work.do(ALLOCATION, package, command)
        work.commit(account_id=who["account_id"], cause=Cause("system:benchmark", "benchmark"), at=NOW)


def _pbxs(package: str, who: dict[str, str]) -> Iterable[CreatePbx | AllocateCapacity]:
    for number in range(PBXS):
        pbx = f"{package}-{number}"
        yield CreatePbx(at=NOW, **who, pbx_id=pbx, name=f"PBX {number}", plan=Plan.ENTERPRISE, extensions=8)
        for n in range(3):
            allocation = f"{pbx}-{n}"
            service = "recording_minutes"
            yield AllocateCapacity(at=NOW, **who, pbx_id=pbx, allocation_id=allocation, service=service, quantity=300)
