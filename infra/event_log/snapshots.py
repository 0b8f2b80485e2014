"""Snapshots of long streams: taken in the background, and ignored if their shape is outdated.

The *shape* of a snapshot identifies the schema of its state and the code that folds it. If either changes, older
snapshots are not read any more, and new ones replace them. States with personal data are never stored.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from functools import cache
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import DictRow
from pydantic import TypeAdapter
from pydantic_core import to_json

from domain.allocation import ALLOCATION
from domain.invoice_link import INVOICE_LINK
from domain.invoice_series import INVOICE_SERIES
from domain.messages import Decider
from domain.payment_reference import PAYMENT_REFERENCE
from domain.price_list import PRICE_LIST
from domain.subscription import SUBSCRIPTION
from infra.event_log.log import Log
from infra.event_log.mapper import UnreadableEvent
from infra.event_log.recorder import Snapshot
from infra.event_log.state_cache import CachedState
from infra.postgres.positions import move_position, position_of

EVERY: Final = 100
"""A stream gets a snapshot each time it has grown by so many events."""

SCAN_POSITIONS: Final = 10_000
NAME: Final = "snapshots"
AnyDecider = Decider[Any, Any, Any]
IMPERSONAL: Final[tuple[AnyDecider, ...]] = (
    PRICE_LIST,
    SUBSCRIPTION,
    ALLOCATION,
    PAYMENT_REFERENCE,
    INVOICE_SERIES,
    INVOICE_LINK,
)
_BY_CATEGORY = {decider.category: decider for decider in IMPERSONAL}
logger = logging.getLogger(__name__)


@cache
def _adapter(category: str) -> TypeAdapter[Any]:
    return TypeAdapter(type(_BY_CATEGORY[category].initial))


@cache
def _shape(category: str) -> str:
    decider = _BY_CATEGORY[category]
    schema = to_json(_adapter(category).json_schema())
    fold = inspect.getsource(sys.modules[decider.evolve.__module__]).encode()
    return hashlib.sha256(schema + fold).hexdigest()


def snapshot_of(decider: AnyDecider, stream: str, recent: CachedState) -> Snapshot:
    """Return the snapshot of a state."""
    state = _adapter(decider.category).dump_json(recent.state)
    return Snapshot(stream, recent.version, recent.account_id, _shape(decider.category), state)


def from_snapshot(decider: AnyDecider, stream: str, log: Log) -> CachedState | None:
    """Return the state in the snapshot of a stream; None if there is none, or it has another shape."""
    if decider.personal:
        return None
    snapshot = log.snapshot(stream, _shape(decider.category))
    if snapshot is None:
        return None
    state = _adapter(decider.category).validate_json(snapshot.state)
    return CachedState(snapshot.version, state, snapshot.account_id)


def load_aggregate(decider: AnyDecider, stream: str, log: Log) -> CachedState:
    """Return the current state of an aggregate, replayed from its cached state or its snapshot."""
    base = log.recent.get(stream) or from_snapshot(decider, stream, log) or CachedState(0, decider.initial, None)
    events = log.load(stream, after=base.version)
    if not events:
        return base
    state = base.state
    for recorded in events:
        state = decider.evolve(state, recorded.event)
    recent = CachedState(events[-1].version, state, base.account_id if base.version else events[0].account_id)
    if not decider.personal:
        log.recent.keep(stream, recent)
    return recent


def take_snapshots(conn: Connection[DictRow], log: Log) -> int:
    """Take the snapshots that are due since the last call. Returns their number."""
    before, head = position_of(conn, NAME), log.head()
    taken = 0
    while before < head:
        upto = min(before + SCAN_POSITIONS, head)
        due = conn.execute(
            "SELECT DISTINCT stream FROM log.events WHERE position > %s AND position <= %s AND version %% %s = 0",
            (before, upto, EVERY),
        ).fetchall()
        for stream in (row["stream"] for row in due):
            decider = _BY_CATEGORY.get(stream.partition("-")[0])
            if decider is None:
                continue
            try:
                log.keep_snapshot(snapshot_of(decider, stream, load_aggregate(decider, stream, log)))
            except UnreadableEvent as error:  # loading that stream raises it; others are not affected
                logger.warning("no snapshot of %s: %s", stream, error)
            else:
                taken += 1
        move_position(conn, NAME, upto)
        before = upto
    return taken
