"""The log on PostgreSQL, read as the role `infra.postgres.connections.AUDITOR`, which is read-only.

All queries are paged, so memory does not grow with the log and no transaction is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from infra.audit.export_bundle import AccountTree, Share
from infra.audit.hash_chain import End, Raw
from infra.audit.merkle import MerkleTree
from infra.event_log.recorder import LogRow
from infra.postgres.connections import AUDITOR, DatabaseUnavailable, connect, only_one

ROWS_PER_PAGE: Final = 2_000
"""Rows held in memory at once."""

STATEMENT_TIMEOUT_S: Final = 3600
"""The longest that one query may run: the tree over the accounts sorts the whole log."""

_SELECT: LiteralString = (
    "SELECT e.position, e.stream, e.version, e.topic, e.state, e.recorded_at, e.account_id, e.event_id, "
    "e.correlation_id, e.causation_id, e.actor, e.hash, "
)
_FROM: LiteralString = "FROM log.events AS e WHERE "
_PREDECESSOR: LiteralString = (
    "(SELECT max(p.position) FROM log.events AS p WHERE p.stream = e.stream AND p.version = e.version - 1) "
)
_PREVIOUS: LiteralString = "(SELECT p.hash FROM log.events AS p WHERE p.position = e.position - 1) AS previous "
_PAGE: LiteralString = (
    _SELECT + _PREDECESSOR + _FROM + "e.position BETWEEN {after} AND {upto} ORDER BY e.position LIMIT {page}"
)
_END: LiteralString = """
    SELECT h.position, h.hash, coalesce((SELECT max(position) FROM log.events), 0) AS last
      FROM (SELECT true) AS one LEFT JOIN log.head AS h ON true
"""
_UNIQUE: LiteralString = """
    SELECT count(DISTINCT i.indkey::text) = 2 AS unique
      FROM pg_index AS i
      JOIN LATERAL (
        SELECT array_agg(a.attname::text ORDER BY k.place) AS columns
          FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS c ON true
     WHERE i.indrelid = 'log.events'::regclass AND i.indisunique AND i.indisvalid AND i.indisready
       AND i.indpred IS NULL AND i.indexprs IS NULL AND c.columns IN (ARRAY['position'], ARRAY['stream', 'version'])
       AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhparent = i.indrelid)
"""
_UNLIKE_A_TABLE: LiteralString = """
    SELECT c.relkind <> 'r' OR c.relrowsecurity OR c.relhasrules AS unlike
      FROM pg_class AS c WHERE c.oid = 'log.events'::regclass
"""
_NOWHERE: LiteralString = "SELECT EXISTS (SELECT FROM log.events WHERE position IS NULL) AS nowhere"
_DOUBLED: LiteralString = """
    SELECT min(position) AS position
      FROM (SELECT position, row_number() OVER (PARTITION BY position) AS at_position,
                   row_number() OVER (PARTITION BY stream, version ORDER BY position) AS at_version
              FROM log.events) AS numbered
     WHERE at_position > 1 OR at_version > 1
"""
_SHARES: LiteralString = """
    WITH upto AS MATERIALIZED (SELECT account_id, stream, version FROM log.events WHERE position <= %(upto)s),
         streams AS (SELECT stream, min(version) AS first, max(version) AS last FROM upto GROUP BY stream)
    SELECT u.account_id, u.stream, s.first, s.last, count(*) AS count
      FROM upto AS u JOIN streams AS s USING (stream)
     GROUP BY u.account_id, u.stream, s.first, s.last
     ORDER BY u.account_id COLLATE "C" NULLS FIRST, u.stream COLLATE "C"
"""
_ACCOUNTS: LiteralString = """
    SELECT count(*) AS accounts, count(*) FILTER (WHERE account_id IS NULL OR account_id COLLATE "C" < %(account)s)
             AS before
      FROM (SELECT DISTINCT account_id FROM log.events WHERE position <= %(upto)s) AS known
"""
_AT: LiteralString = "SELECT coalesce(max(position), 0) AS position FROM log.events WHERE recorded_at <= %(moment)s"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A filter on rows; a field that is None does not restrict."""

    stream: str | None = None
    account: str | None = None
    topics: Sequence[str] | None = None
    actor: str | None = None
    from_time: datetime | None = None
    to_time: datetime | None = None
    from_position: int | None = None
    to_position: int | None = None

    def where(self) -> tuple[LiteralString, dict[str, Any]]:
        """Return the SQL condition and its parameters."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        parameters = {name: value for name, value in given.items() if value is not None}
        conditions: LiteralString = "true"
        for name, condition in _CONDITIONS.items():
            if name in parameters:
                conditions = conditions + " AND " + condition
        return conditions, parameters


_CONDITIONS: Final[dict[str, LiteralString]] = {
    "stream": "e.stream = %(stream)s",
    "account": "e.account_id = %(account)s",
    "topics": "e.topic = ANY(%(topics)s)",
    "actor": "e.actor = %(actor)s",
    "from_time": "e.recorded_at >= %(from_time)s",
    "to_time": "e.recorded_at <= %(to_time)s",
    "from_position": "e.position >= %(from_position)s",
    "to_position": "e.position <= %(to_position)s",
}


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnavailable(f"The log does not answer {AUDITOR}: {reason}") from error


class Auditor:
    """Queries of the log and the read models for auditors. Implements `infra.audit.hash_chain.LogSource`."""

    def __init__(self, conn: Connection[DictRow]) -> None:
        self._conn = conn

    def _one(self, query: LiteralString, **parameters: object) -> DictRow:
        with _answering():
            found = self._conn.execute(query, parameters).fetchone()
        assert found is not None, "an aggregate has a row"
        return found

    def alone(self, name: str) -> bool:
        """Try to take the lock ``name`` over all processes; the connection holds it until it closes."""
        with _answering():
            return only_one(self._conn, name)

    # --- for verifying the chain

    def doubled(self) -> int | None:
        """See `infra.audit.hash_chain.LogSource`. Searches only if indexes or inheriting tables allow a duplicate."""
        if self._one(_NOWHERE)["nowhere"]:
            return 0
        if self._one(_UNIQUE)["unique"]:
            return None
        found: int | None = self._one(_DOUBLED)["position"]
        return found

    def shows_all(self) -> bool:
        """See `infra.audit.hash_chain.LogSource`."""
        return not self._one(_UNLIKE_A_TABLE)["unlike"]

    def end(self) -> End:
        """Return where the log ends, by ``log.head`` and by its rows."""
        return End(**self._one(_END))

    def pages(self, after: int, upto: int) -> Iterator[Sequence[Raw]]:
        """Yield the rows after a position in PostgreSQL's binary format, each with its predecessor's position."""
        first = after + 1 if after else -(2**63)  # to see rows that somebody has inserted before the first
        while True:
            query = _PAGE.format(after=first, upto=upto, page=ROWS_PER_PAGE)
            copied = f"COPY ({query}) TO STDOUT (FORMAT BINARY)".encode()
            with _answering(), self._conn.cursor() as cursor, cursor.copy(copied) as copy:
                page: list[Raw] = list(copy.rows())
            if not page:
                return
            yield page
            first = int.from_bytes(page[-1][0] or b"", "big", signed=True) + 1

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of a row, or None if there is no such row."""
        query: LiteralString = "SELECT hash FROM log.events WHERE position = %(at)s"
        with _answering():
            found = self._conn.execute(query, {"at": position}).fetchone()
        return found["hash"] if found else None

    def accounts_root(self, upto: int) -> tuple[int, bytes]:
        """Return the number of accounts, and the root of the tree over them, as of a position."""
        tree = AccountTree(MerkleTree())
        for share in self._shares(upto):
            tree.add(share)
        return tree.ended()

    # --- for exports

    def _shares(self, upto: int) -> Iterator[Share]:
        """Yield the share that each account has of each stream, in the order of the tree."""
        with _answering(), self._conn.transaction(), self._conn.cursor("shares") as cursor:
            cursor.itersize = ROWS_PER_PAGE
            cursor.execute(_SHARES, {"upto": upto})
            for row in cursor:
                yield Share(**row)

    def account_tree(self, account: str, upto: int) -> tuple[AccountTree, int]:
        """Return the tree over the accounts as of a position, able to prove one account, and the index of its entry."""
        known = self._one(_ACCOUNTS, account=account, upto=upto)
        tree = AccountTree(MerkleTree.proving([known["before"]], known["accounts"]), account)
        for share in self._shares(upto):
            tree.add(share)
        return tree, known["before"]

    def positions_of(self, account: str, upto: int) -> list[int]:
        """Return the positions of an account's events."""
        query: LiteralString = (
            "SELECT coalesce(array_agg(position ORDER BY position), '{}') AS positions FROM log.events "
            "WHERE account_id = %(account)s AND position <= %(upto)s"
        )
        found: list[int] = self._one(query, account=account, upto=upto)["positions"]
        return found

    # --- for interactive queries

    def head(self) -> int:
        """Return the position of the last event; 0 if the log is empty."""
        return self.end().last

    def position_at(self, moment: datetime) -> int:
        """Return the last position recorded at or before a moment; 0 if there was none."""
        found: int = self._one(_AT, moment=moment)["position"]
        return found

    def knows(self, wanted: Wanted) -> bool:
        """Whether any event matches."""
        return next(self.events(wanted, limit=1), None) is not None

    def events(self, wanted: Wanted, limit: int | None = None) -> Iterator[DictRow]:
        """Yield the matching rows by position; ``previous`` is the hash of the row before."""
        where, parameters = wanted.where()
        rest: LiteralString = " AND e.position > %(after)s ORDER BY e.position LIMIT %(page)s"
        query: LiteralString = _SELECT + _PREVIOUS + _FROM + where + rest
        after, left = 0, limit
        while left is None or left > 0:
            page = ROWS_PER_PAGE if left is None else min(ROWS_PER_PAGE, left)
            with _answering():
                found = self._conn.execute(query, parameters | {"after": after, "page": page}).fetchall()
            yield from found
            if len(found) < page:
                return
            after, left = found[-1]["position"], None if left is None else left - len(found)


def log_row(columns: DictRow) -> LogRow:
    """Convert a row to the form that the mapper reads."""
    return LogRow(
        originator_id=columns["stream"],
        originator_version=columns["version"],
        topic=columns["topic"],
        state=columns["state"],
        id=columns["position"],
        recorded_at=columns["recorded_at"],
        account_id=columns["account_id"],
        correlation_id=columns["correlation_id"],
        causation_id=columns["causation_id"],
        actor=columns["actor"],
    )


@contextmanager
def auditing(database_url: str) -> Iterator[Auditor]:
    """Connect to the log as an auditor.

    Raises:
        DatabaseUnavailable: also from each query; names the setting.
    """
    with connect(database_url, AUDITOR) as conn:
        with _answering():
            conn.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'")
            conn.execute("SET search_path = pg_catalog")
        yield Auditor(conn)
