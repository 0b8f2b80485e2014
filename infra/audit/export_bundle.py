"""The bundle of an account: its events, with a proof that they are in the log, unaltered and complete.

Checking it needs the public key, but no database and no network. A full checkpoint signs the roots of two Merkle trees
(`infra.audit.merkle`):

- over the log: entry n is the hash of position n + 1, so a tree of n entries is the log as of position n;
- over the accounts, sorted by the bytes of their ids (events of no account come first): an entry is the account's id,
  the number of streams it has events in, and the root of a tree over those streams. The entries of that tree, sorted by
  the bytes of the stream, are the stream, its first and last version, and how many of its events are the account's.

So a bundle has every stream of the account, and every event of each. Texts and numbers are packed as in
`infra.audit.hash_chain.canonical`.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import to_json

from domain.messages import what_is_wrong
from infra.audit.checkpoints import Checkpoint, Count, ForgedCheckpoint, Position, Record, Sha256, Trees
from infra.audit.ed25519 import PublicKey
from infra.audit.hash_chain import GENESIS, Raw, linked, raw
from infra.audit.merkle import MerkleTree, NotProven, root_of
from infra.postgres.binary_format import microseconds, packed_text

FORMAT: Final = "trunkline export v1"
_NUMBERS = struct.Struct(">qqq").pack
_NUMBER = struct.Struct(">q").pack


class Share(Record):
    """An account's part of a stream: ``count`` of the events from version ``first`` to ``last``.

    Most streams belong to one account, whose share has all of their events. A few, such as the series of invoice
    numbers, have events of many accounts.
    """

    account_id: str | None
    stream: str
    first: Count
    last: Count
    count: Position

    @property
    def whole(self) -> bool:
        """Whether every event of the stream belongs to the account."""
        return self.count == self.last - self.first + 1

    def entry(self) -> bytes:
        """Return the entry in the account's tree."""
        return packed_text(self.stream) + _NUMBERS(self.first, self.last, self.count)


def account_entry(account_id: str | None, streams: MerkleTree) -> bytes:
    """Return the entry in the tree over the accounts."""
    return packed_text(account_id) + _NUMBER(streams.size) + streams.root()


class AccountTree:
    """The tree over the accounts, built from shares in its order. Keeps the shares of one account.

    Memory: that account's shares, and the peaks of the tree.
    """

    def __init__(self, tree: MerkleTree, account: str | None = None) -> None:
        self._tree = tree
        self._account = account
        self._of: str | None = None
        self._streams = MerkleTree()
        self.shares: list[Share] = []
        self.events = 0

    def add(self, share: Share) -> None:
        """Add a share."""
        if share.account_id != self._of:
            self._end_account()
            self._of = share.account_id
        self._streams.add(share.entry())
        self.events += share.count
        if self._account is not None and share.account_id == self._account:
            self.shares.append(share)

    def _end_account(self) -> None:
        if self._streams.size:
            self._tree.add(account_entry(self._of, self._streams))
            self._streams = MerkleTree()

    def ended(self) -> tuple[int, bytes]:
        """Return the number of accounts and the root."""
        self._end_account()
        return self._tree.size, self._tree.root()

    def inclusion(self, index: int) -> list[bytes]:
        """Return the proof of an account that was requested in advance."""
        return self._tree.inclusion(index)


class ProvenEvent(Record):
    """A row of the log, and its inclusion proof. The state is text if it is UTF-8, otherwise base64."""

    position: Position
    stream: str
    version: Count
    topic: str
    state: str | None = None
    state_base64: str | None = None
    recorded_at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$")]
    account_id: str
    event_id: UUID
    correlation_id: str
    causation_id: str | None
    actor: str
    previous_hash: Sha256
    hash: Sha256
    proof: tuple[Sha256, ...]

    def row(self) -> Raw:
        """Return the row in the form that the chain hashes.

        Raises:
            ValueError: the state or the time is not valid.
        """
        if (self.state is None) == (self.state_base64 is None):
            raise ValueError("an event needs exactly one of state and state_base64")
        return raw(
            position=self.position,
            stream=self.stream,
            version=self.version,
            topic=self.topic,
            state=self.state.encode() if self.state is not None else b64decode(self.state_base64 or "", validate=True),
            recorded_at=microseconds(datetime.fromisoformat(self.recorded_at)),
            account_id=self.account_id,
            event_id=self.event_id,
            correlation_id=self.correlation_id,
            causation_id=self.causation_id,
            actor=self.actor,
        )


class Bundle(Record):
    """A parsed bundle."""

    format: Literal["trunkline export v1"]
    account: Annotated[str, Field(min_length=1)]
    checkpoint: Checkpoint
    account_index: Count
    account_proof: tuple[Sha256, ...]
    streams: tuple[Share, ...]
    events: tuple[ProvenEvent, ...]


@dataclass(frozen=True)
class Proven:
    """What a bundle proves."""

    account: str
    events: int
    streams: tuple[Share, ...]
    checkpoint: Checkpoint


def written(
    account: str, checkpoint: Checkpoint, tree: AccountTree, index: int, events: Iterable[dict[str, Any]]
) -> Iterator[bytes]:
    """Yield the text of a bundle in pieces; ``events`` are columns, with ``previous`` and ``proof`` (bytes)."""
    head = {
        "format": FORMAT,
        "account": account,
        "checkpoint": checkpoint.model_dump(mode="json", exclude_none=True),
        "account_index": index,
        "account_proof": [sibling.hex() for sibling in tree.inclusion(index)],
        "streams": [share.model_dump() for share in tree.shares],
    }
    yield to_json(head, indent=1).removesuffix(b"\n}") + b',\n "events": ['
    for number, columns in enumerate(events):
        yield (b",\n  " if number else b"\n  ") + to_json(_event(columns))
    yield b"\n ]\n}\n"


def _event(columns: dict[str, Any]) -> dict[str, Any]:
    event = {name: columns[name] for name in ProvenEvent.model_fields if name in columns}
    try:
        event["state"] = columns["state"].decode()
    except UnicodeDecodeError:
        event.pop("state")
        event["state_base64"] = b64encode(columns["state"]).decode()
    return event | {
        "recorded_at": columns["recorded_at"].astimezone(UTC).isoformat(timespec="microseconds"),
        "previous_hash": (columns["previous"] or GENESIS).hex(),
        "hash": columns["hash"].hex(),
        "proof": [sibling.hex() for sibling in columns["proof"]],
    }


def verified(text: bytes, keys: Collection[PublicKey], where: str) -> Proven:
    """Check a bundle and return what it proves.

    Raises:
        NotProven: it cannot be read, or anything in it differs from the export. The message names what.
        WrongKey: another key signed it.
    """
    try:
        bundle = Bundle.model_validate_json(text)
        json.loads(text, object_pairs_hook=_each_name_once)
    except ValidationError as error:
        raise NotProven(f"{where} is not an account export: {what_is_wrong(error)}.") from None
    except _NameTwice as twice:
        raise NotProven(f"{where} repeats the field {twice} in one object; readers differ in which they use.") from None
    try:
        bundle.checkpoint.check(keys)
    except ForgedCheckpoint as forged:
        raise NotProven(f"{where} proves nothing: {forged}.") from None
    trees = bundle.checkpoint.trees
    if trees is None:
        raise NotProven(f"{where} proves nothing: its checkpoint has no trees.")
    _check_streams(bundle, trees)
    counted = dict.fromkeys((share.stream for share in bundle.streams), 0)
    before = 0
    for event in bundle.events:
        if event.position <= before:
            raise NotProven(f"Position {event.position} is out of order or repeated in {where}.")
        before = event.position
        _check_in_log(event, bundle, trees)
        if event.stream not in counted:
            raise NotProven(f"Position {event.position} is in {event.stream}, which is not a stream of the account.")
        counted[event.stream] += 1
    _check_complete(bundle, counted)
    return Proven(bundle.account, len(bundle.events), bundle.streams, bundle.checkpoint)


class _NameTwice(Exception):
    """A JSON object has two fields of one name, which readers treat differently (RFC 8259, section 4)."""


def _each_name_once(pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise _NameTwice(next(name for name in names if names.count(name) > 1))


def _check_streams(bundle: Bundle, trees: Trees) -> None:
    """Check that these are all streams of the account."""
    streams = MerkleTree()
    for share in bundle.streams:
        if share.account_id != bundle.account:
            raise NotProven(f"The stream {share.stream} is listed for another account.")
        streams.add(share.entry())
    entry = account_entry(bundle.account, streams)
    root = root_of(entry, bundle.account_index, trees.accounts, _hashes(bundle.account_proof))
    if root.hex() != trees.accounts_root:
        raise NotProven(
            f"The streams of {bundle.account} do not match the signed checkpoint: a stream was changed, added or left "
            "out, or the account was changed."
        )


def _check_in_log(event: ProvenEvent, bundle: Bundle, trees: Trees) -> None:
    """Check that an event is the row of the log at its position."""
    where = f"The event at position {event.position} ({event.stream} version {event.version})"
    if event.account_id != bundle.account:
        raise NotProven(f"{where} belongs to another account.")
    try:
        found = linked(bytes.fromhex(event.previous_hash), event.row())
    except (ValueError, UnicodeEncodeError) as error:
        raise NotProven(f"{where} cannot be read: {error}.") from None
    if found.hex() != event.hash:
        raise NotProven(f"{where} was altered: its hash does not match its content.")
    try:
        root = root_of(found, event.position - 1, bundle.checkpoint.position, _hashes(event.proof))
    except NotProven as why:
        raise NotProven(f"{where} is not in the log: {str(why)[:1].lower()}{str(why)[1:]}") from None
    if root.hex() != trees.log_root:
        raise NotProven(f"{where} is not in the log: its proof does not lead to the signed root.")


def _check_complete(bundle: Bundle, counted: dict[str, int]) -> None:
    """Check that each stream has the number of events that its share says and, if it is whole, every version.

    At this point each event is known to be in the log and no position is repeated; nor is a version repeated in a log
    that was verified.
    """
    versions: dict[str, list[int]] = {}
    for event in bundle.events:
        versions.setdefault(event.stream, []).append(event.version)
    for share in bundle.streams:
        if counted[share.stream] != share.count:
            raise NotProven(
                f"The stream {share.stream} is not complete: it has {counted[share.stream]} of {share.count} events."
            )
        found = versions[share.stream]
        contiguous = found == list(range(share.first, share.last + 1))
        if sorted(set(found)) != found or (share.whole and not contiguous) or not share.first <= found[0] <= share.last:
            raise NotProven(f"The versions of {share.stream} do not run from {share.first} to {share.last}.")


def _hashes(proof: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(sibling) for sibling in proof]
