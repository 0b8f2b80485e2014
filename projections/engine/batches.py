"""How a projection follows the log: in batches, each with its rows and its position in one transaction.

A batch of the log is read, the rows that it touches are loaded once, folded in plain Python, and written in one
statement a table together with the position of the projection. So a crash loses nothing and repeats nothing.

Live tables are in the schema ``read``. Those that are being rebuilt are in another one, with a position of their own
(`projections.maintenance.rebuild`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import DictRow

from domain.messages import Event
from infra.event_log.log import Log
from infra.event_log.recorder import LogRow
from infra.event_log.topics import topics
from infra.event_log.upcasts import UPCASTS, topic_today
from infra.postgres.positions import move_position, position_of
from infra.recorded import Cause, Recorded
from projections.engine.projection import PartitionKey, Projection
from projections.engine.rows import LIVE, Rows, delete_rows, stored, upsert_rows

BATCH = 5_000
"""The largest number of events that a projection folds in one transaction."""


SPAN = 200_000
"""The largest number of positions that it passes in one transaction, if few of them are its events."""


LAST: Final = 2**62


def catch_up(
    conn: Connection[DictRow],
    log: Log,
    projection: Projection,
    batch: int = BATCH,
    schema: str = LIVE,
    upto: int = LAST,
) -> tuple[int, int]:
    """Project the next events up to a position, at most ``batch`` of its own, in one transaction.

    The head of the log is read first and the events after it, in the same transaction, so no passed position is missed.
    Returns the position that the projection reached, and the number of positions that it passed.
    """
    with conn.pipeline(), conn.transaction():  # writes and commit are sent together
        before, head = _bounds(conn, projection, schema)
        position = min(head, before + SPAN, upto)
        if position <= before:
            return before, 0
        rows = _next_rows(conn, projection, before, position, batch)
        if len(rows) == batch:
            position = rows[-1]["id"]
        project(conn, projection, decoded(log, projection, rows), schema)
        move_position(conn, position_name(projection, schema), position)
    return position, position - before


def position_name(projection: Projection, schema: str = LIVE) -> str:
    """Return the name of the position of a projection in ``read.positions``."""
    return projection.name if schema == LIVE else f"{schema}.{projection.name}"


def _bounds(conn: Connection[DictRow], projection: Projection, schema: str) -> tuple[int, int]:
    """Return the locked position of a projection, and the head of the log, read no later than that."""
    row = conn.execute(_BOUNDS, (position_name(projection, schema),), prepare=True).fetchone()
    if row is None:
        return locked_position(conn, projection, schema), head_of(conn)
    return int(row["position"]), int(row["head"])


_BOUNDS: Final = (
    "SELECT p.position, h.position AS head FROM read.positions AS p, log.head AS h WHERE p.name = %s FOR UPDATE OF p"
)


def locked_position(conn: Connection[DictRow], projection: Projection, schema: str = LIVE) -> int:
    """Return the position of a projection, locked until this transaction ends."""
    name = position_name(projection, schema)
    query = "SELECT position FROM read.positions WHERE name = %s FOR UPDATE"
    if (row := conn.execute(query, (name,)).fetchone()) is None:
        conn.execute("INSERT INTO read.positions (name, position) VALUES (%s, 0) ON CONFLICT DO NOTHING", (name,))
        row = conn.execute(query, (name,)).fetchone()
    assert row is not None
    return int(row["position"])


def head_of(conn: Connection[Any]) -> int:
    """Return the last position of the log that this connection sees."""
    row = conn.execute("SELECT position FROM log.head").fetchone()
    assert row is not None
    return int(row["position"])


def log_columns(projection: Projection) -> str:
    """Return the columns of the log that a projection needs, as `LogRow` names them."""
    state = "state" if projection.bodies else "''::bytea AS state"
    return (
        f"stream AS originator_id, version AS originator_version, topic, {state}, position AS id, "
        "recorded_at, account_id, correlation_id, causation_id, actor"
    )


def _next_rows(
    conn: Connection[DictRow], projection: Projection, after: int, upto: int, limit: int
) -> list[dict[str, Any]]:
    """Return the next rows of the log that a projection reads, without those that it skips."""
    condition, topics_read = read_by([projection])
    query = (
        f"SELECT {log_columns(projection)} FROM log.events "  # noqa: S608 - ours
        f"WHERE position > %(after)s AND position <= %(upto)s AND {condition} "
        "AND position <> ALL (ARRAY(SELECT s.position FROM projection.skipped AS s WHERE s.name = %(name)s)) "
        "ORDER BY position LIMIT %(limit)s"
    )
    parameters = {"after": after, "upto": upto, "name": projection.name, "limit": limit, **topics_read}
    return conn.cursor(binary=True).execute(query.encode(), parameters, prepare=True).fetchall()


def read_by(projections: Sequence[Projection]) -> tuple[str, Mapping[str, list[str]]]:
    """Return the condition on rows of the log that one of these projections reads, and its parameters.

    It includes unknown topics that may be theirs: a later version wrote them, and a projection that passed them would
    be wrong from then on.
    """
    if any(projection.events == (Event,) for projection in projections):
        return "true", {}
    condition = "(topic = ANY(%(read)s) OR topic <> ALL(%(known)s) AND split_part(topic, '.', 1) = ANY(%(categories)s))"
    return condition, {
        "read": sorted(frozenset[str]().union(*(projection.topics for projection in projections))),
        "known": sorted([*topics(), *UPCASTS]),
        "categories": sorted(frozenset[str]().union(*(projection.categories for projection in projections))),
    }


def next_row(conn: Connection[DictRow], projection: Projection) -> LogRow | None:
    """Return the next event that a projection reads, undecoded, or None."""
    rows = _next_rows(conn, projection, position_of(conn, projection.name), LAST, 1)
    return LogRow(**rows[0]) if rows else None


def decoded(log: Log, projection: Projection, rows: Iterable[dict[str, Any]]) -> Iterator[Recorded]:
    """Return the events of rows, without bodies if the projection reads none."""
    if projection.bodies:
        return (log.decoded(LogRow(**row)) for row in rows)
    return map(bodiless, rows)


def bodiless(row: Mapping[str, Any]) -> Recorded:
    """Return the event of a row whose body was not read."""
    return Recorded(
        row["originator_id"],
        row["originator_version"],
        without_body(row["topic"]),
        row["account_id"],
        Cause(row["actor"], row["correlation_id"], row["causation_id"]),
        row["recorded_at"],
        row["id"],
    )


@cache
def without_body(topic: str) -> Event:
    """Return an event that has nothing but a topic.

    Raises:
        LookupError: the topic is unknown.
    """
    known = topics().get(topic_today(topic))
    if known is None:
        raise LookupError(f"the topic {topic!r} is unknown to this version of Trunkline")
    return known.model_construct()


def project(conn: Connection[DictRow], projection: Projection, events: Iterable[Recorded], schema: str = LIVE) -> None:
    """Fold ``events`` into the tables of a projection, in the open transaction."""
    partition, kinds = projection.partition, projection.kinds
    touched = [(partition(e), e) for e in events if type(e.event) in kinds]
    if not touched:
        return
    partitions = _loaded(conn, projection, list({key: None for key, _ in touched}), schema)
    for key, recorded in touched:
        projection.fold(partitions[key], recorded)
    for table in projection.tables:
        delete_rows(conn, table, [key for rows in partitions.values() for key in rows.gone(table)], schema)
        upsert_rows(conn, table, [row for rows in partitions.values() for row in rows.changed(table)], schema)


def _loaded(
    conn: Connection[DictRow], projection: Projection, keys: list[PartitionKey], schema: str
) -> Mapping[PartitionKey, Rows]:
    partitions = {key: Rows() for key in keys}
    for table in () if projection.append_only else projection.tables:
        for row in stored(conn, table, schema, **{table.PARTITION: keys}):
            partitions[getattr(row, table.PARTITION)].found(row)
    return partitions
