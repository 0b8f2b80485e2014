"""The content of an export: a walk over the whole log, which verifies it, and the Merkle trees over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra.audit.auditor import Auditor, Wanted
from infra.audit.checkpoints import Checkpoint, Trees
from infra.audit.export_bundle import AccountTree, written
from infra.audit.hash_chain import TWICE, ChainBroken, Walk, doubled_in
from infra.audit.merkle import MerkleTree


@dataclass(frozen=True)
class Export:
    """The events of an account as of a position, ready to be written once a checkpoint is signed there."""

    account: str
    head: tuple[int, bytes]
    trees: Trees
    accounts: AccountTree
    _walk: Walk
    _index: int

    @property
    def events(self) -> int:
        """The number of events."""
        return sum(share.count for share in self.accounts.shares)

    def text(self, auditor: Auditor, checkpoint: Checkpoint) -> Iterator[bytes]:
        """Yield the bundle in pieces."""
        rows = auditor.events(Wanted(account=self.account, to_position=self._walk.position))
        proven = ({**row, "proof": self._walk.tree.inclusion(row["position"] - 1)} for row in rows)
        return written(self.account, checkpoint, self.accounts, self._index, proven)


def export_of(
    auditor: Auditor, account: str, on_progress: Callable[[int, int], None] = lambda _position, _end: None
) -> Export:
    """Read the log to its end, and prove that the events of an account are complete.

    Memory: for m events of n, m positions and at most m log2(n) hashes, the shares of the account, and a page of rows.

    Raises:
        ChainBroken: the log is not as it was recorded; nothing is exported.
    """
    if (doubled := doubled_in(auditor, 0)) is not None:
        raise ChainBroken(doubled, TWICE)
    end = auditor.end()
    wanted = (position - 1 for position in auditor.positions_of(account, end.last))
    walk = Walk(tree=MerkleTree.proving(wanted, end.last))
    for page in auditor.pages(0, end.last):
        for row in page:
            walk.step(row)
        on_progress(walk.position, end.last)
    if (walk.position, walk.hash) != (end.position, end.hash):
        raise ChainBroken(walk.position, f"its row is the last, and log.head says that the log ends at {end.position}")
    accounts, index = auditor.account_tree(account, walk.position)
    count, root = accounts.ended()
    if accounts.events != walk.position:
        raise ChainBroken(walk.position, "the events of all accounts are not as many as the log has")
    trees = Trees(log_root=walk.tree.root().hex(), accounts=count, accounts_root=root.hex())
    return Export(account, (walk.position, walk.hash), trees, accounts, walk, index)
