"""The hash chain over the log's rows: canonical form, hashes, and the walk that finds the first wrong position.

A row's hash is ``sha256(hash of the position before, canonical row)``; the hash before the first is 32 zero bytes. Two
implementations that share no code make the canonical row: ``log.append`` and this module. Rows are read in PostgreSQL's
binary format, undecoded: a tampered value need not be one that Python can represent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol
from uuid import UUID

from infra.audit.checkpoints import Checkpoint, ForgedCheckpoint, Trees
from infra.audit.ed25519 import PublicKey
from infra.audit.merkle import MerkleTree
from infra.postgres.binary_format import packed_bytes

GENESIS: Final = bytes(32)
Raw = Sequence[bytes | None]
"""A row in PostgreSQL's binary format: position, stream, version, topic, state, recorded_at, account_id, event_id,
correlation_id, causation_id, actor; and, from a `LogSource`, its hash, and the position of the version before it."""

_INT8 = struct.Struct(">q")


class ChainBroken(Exception):
    """The log is not what was recorded. ``position`` is the first wrong one; ``reason`` says what is wrong."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"Position {position} is the first that is wrong: {reason}.")
        self.position = position
        self.reason = reason


def canonical(row: Raw) -> bytes:
    """Return the bytes of a row that the chain hashes.

    Texts and the state are a length (4 bytes) and their bytes, or the length -1 for NULL; a number has 8 bytes, a time
    8 (microseconds since 2000-01-01 UTC), an event id 16; all in network order. The row's own hash is not part of it.
    """
    position, stream, version, topic, state, recorded_at, account, event_id, correlation, causation, actor = row[:11]
    return b"".join(
        (
            position or b"",
            packed_bytes(stream),
            version or b"",
            packed_bytes(topic),
            packed_bytes(state),
            recorded_at or b"",
            packed_bytes(account),
            event_id or b"",
            packed_bytes(correlation),
            packed_bytes(causation),
            packed_bytes(actor),
        )
    )


def raw(  # noqa: PLR0913 - one argument a column
    *,
    position: int,
    stream: str,
    version: int,
    topic: str,
    state: bytes,
    recorded_at: int,
    account_id: str | None,
    event_id: UUID,
    correlation_id: str,
    causation_id: str | None,
    actor: str,
) -> Raw:
    """Return a row in PostgreSQL's binary format; ``recorded_at`` is in microseconds since 2000-01-01 UTC."""
    return (
        _INT8.pack(position),
        stream.encode(),
        _INT8.pack(version),
        topic.encode(),
        state,
        _INT8.pack(recorded_at),
        None if account_id is None else account_id.encode(),
        event_id.bytes,
        correlation_id.encode(),
        None if causation_id is None else causation_id.encode(),
        actor.encode(),
    )


def linked(previous: bytes, row: Raw) -> bytes:
    """Return the hash of a row that follows the row of hash ``previous``."""
    return sha256(previous + canonical(row)).digest()


def number(value: bytes | None) -> int | None:
    """Decode a number of a row."""
    return None if value is None else int.from_bytes(value, "big", signed=True)


def _text(value: bytes | None) -> str:
    return "nothing" if value is None else value.decode(errors="replace")


TWICE: Final = "its position, or its version in its stream, is not unique"


class Walk:
    """A walk along the log, row by row: the position reached, its hash, and the Merkle tree of all hashes so far."""

    def __init__(self, position: int = 0, hash_: bytes = GENESIS, tree: MerkleTree | None = None) -> None:
        self.position = position
        self.hash = hash_
        self.tree = tree or MerkleTree()

    def step(self, row: Raw) -> None:
        """Advance to the next row.

        Raises:
            ChainBroken: it is not the row that was recorded here.
        """
        position, version, expected = number(row[0]), number(row[2]), self.position + 1
        if position is None or position < expected:
            raise ChainBroken(expected, f"in place of its row there is one at position {position}")
        if position > expected:
            raise ChainBroken(expected, f"its row is missing; the next one is at position {position}")
        found = linked(self.hash, row)
        if found != row[11]:
            raise ChainBroken(
                position,
                f"its row ({_text(row[1])} version {version}, {_text(row[3])}) has a hash that does not follow from "
                "its columns and the hash before it, so one of them was changed, or the row was replaced",
            )
        self._in_its_stream(position, row, version, number(row[12]))
        self.position, self.hash = position, found
        self.tree.add(found)

    def _in_its_stream(self, position: int, row: Raw, version: int | None, predecessor: int | None) -> None:
        """Check that the previous version comes earlier, so versions run from 1 (the library's own: from 0)."""
        where = f"its row is version {version} of {_text(row[1])}"
        if version is None or version < 0:
            raise ChainBroken(position, f"{where}, and versions begin with 1")
        if predecessor is None and version > 1:
            raise ChainBroken(position, f"{where}, and there is no version {version - 1}")
        if predecessor is not None and predecessor >= position:
            raise ChainBroken(position, f"{where}, and version {version - 1} comes later, at position {predecessor}")


@dataclass(frozen=True)
class End:
    """Where the log ends, at one moment: by ``log.head`` (None if it is empty), and the position of the last row."""

    position: int | None
    hash: bytes | None
    last: int


class LogSource(Protocol):
    """Where the rows come from."""

    def shows_all(self) -> bool:
        """Whether every reader sees the same rows: no view in the log's place, no rule, no row-level security."""

    def doubled(self) -> int | None:
        """Return the first position that repeats a position or a version of a stream; 0 if a row has no position."""

    def end(self) -> End:
        """Return where the log ends now."""

    def pages(self, after: int, upto: int) -> Iterator[Sequence[Raw]]:
        """Yield the rows after a position, or all rows if it is 0, page by page in the order of positions."""

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of a row."""

    def accounts_root(self, upto: int) -> tuple[int, bytes]:
        """Return the number of accounts as of a position, and their tree's root: see `infra.audit.export_bundle`."""


def doubled_in(log: LogSource, after: int) -> int | None:
    """Check that every reader sees these rows; return the result of `LogSource.doubled`.

    Raises:
        ChainBroken: readers may see other rows, or a row has no position.
    """
    if not log.shows_all():
        raise ChainBroken(after + 1, "log.events is not a plain table, so others may read other rows in it")
    doubled = log.doubled()
    if doubled == 0:
        raise ChainBroken(after + 1, "the log has a row without a position")
    return doubled


@dataclass
class Verifier:
    """Walks a log and verifies rows, chain, versions, ``log.head``, and signed checkpoints.

    Memory: a page of rows and the peaks of a tree, whatever the length of the log. Versions need none: with each row
    the source returns the position of the previous version, from the unique index on streams.

    Args:
        log: where the rows come from.
        checkpoints: in the order of positions. Those at or before the start of the walk are skipped.
        keys: each checkpoint must be signed by one of them.
        walk: where to begin.
        on_checkpoint: called with each checkpoint that agrees, and the walk there.
        on_progress: called with the position reached and the position of the end.
    """

    log: LogSource
    checkpoints: Iterable[Checkpoint] = ()
    keys: Collection[PublicKey] = ()
    walk: Walk | None = None
    on_checkpoint: Callable[[Checkpoint, Walk], None] = lambda _checkpoint, _walk: None
    on_progress: Callable[[int, int], None] = lambda _position, _end: None

    def verify(self) -> Walk:
        """Walk to the end of the log, and return the walk.

        Raises:
            ChainBroken: names the first wrong position.
            WrongKey: a checkpoint was signed by another key.
        """
        walk = self.walk = self.walk or Walk()
        begin = self._good = self._begun = walk.position
        self._accounts: tuple[int, int, bytes] | None = None
        self._ahead = (one for one in self.checkpoints if one.position > begin)
        self._next = next(self._ahead, None)
        doubled = doubled_in(self.log, walk.position)
        while True:
            end = self.log.end()
            for page in self.log.pages(walk.position, end.last):
                self._through(page, walk, doubled)
                self.on_progress(walk.position, max(walk.position, end.last))
            self._ends(walk, end)
            if self._next is None:
                return walk
            self._signature(self._next)
            if self.log.end().position == walk.position:
                raise ChainBroken(
                    walk.position + 1,
                    f"its row is missing; a signed checkpoint says that the log reached position {self._next.position} "
                    f"at {self._next.time:%Y-%m-%d %H:%M:%S}, but it ends at {walk.position}",
                )
            # otherwise the log has grown since the walk began, and a checkpoint was made

    def _through(self, page: Sequence[Raw], walk: Walk, doubled: int | None) -> None:
        for row in page:
            if doubled is not None and number(row[0]) == doubled:
                raise ChainBroken(doubled, TWICE)
            walk.step(row)
            while self._next is not None and self._next.position == walk.position:
                self._agrees(self._next, walk)
                self._good = walk.position
                self.on_checkpoint(self._next, walk)
                self._next = next(self._ahead, None)

    def _signature(self, checkpoint: Checkpoint) -> None:
        try:
            checkpoint.check(self.keys)
        except ForgedCheckpoint as forged:
            raise ChainBroken(forged.position, f"{forged}") from None

    def _agrees(self, checkpoint: Checkpoint, walk: Walk) -> None:
        self._signature(checkpoint)
        signed = f"the signed checkpoint of {checkpoint.time:%Y-%m-%d %H:%M:%S}"
        if checkpoint.hash != walk.hash.hex():
            raise ChainBroken(
                walk.position,
                f"{signed} has another hash for it, so the log was rewritten somewhere after position {self._good}",
            )
        trees = checkpoint.trees
        if trees is None:
            return
        if trees.log_root != walk.tree.root().hex():
            raise ChainBroken(
                walk.position,
                f"{signed} has another root of the tree over the log"
                + (", or the saved verification was altered; verify from the beginning" if self._begun else ""),
            )
        if self._accounts is None or self._accounts[0] != walk.position:  # expensive: it sorts the whole log
            self._accounts = (walk.position, *self.log.accounts_root(walk.position))
        _, accounts, root = self._accounts
        if trees != Trees(log_root=trees.log_root, accounts=accounts, accounts_root=root.hex()):
            raise ChainBroken(walk.position, f"{signed} has another root of the tree over the accounts")

    def _ends(self, walk: Walk, end: End) -> None:
        """Check that ``log.head`` agrees with the last row."""
        if end.position is None:
            raise ChainBroken(walk.position + 1, "log.head, which says where the log ends, is empty")
        if walk.position < end.position:
            raise ChainBroken(
                walk.position + 1,
                f"its row is missing; log.head says that the log reaches {end.position}, but it ends at "
                f"{walk.position}",
            )
        if walk.position > end.position:
            raise ChainBroken(
                end.position + 1, f"log.head says that the log ends at {end.position}, but this row follows"
            )
        if walk.hash != end.hash:
            raise ChainBroken(walk.position, "log.head has another hash for it than its row")
