"""One run of ``trunkline audit verify``: its progress, where that is saved, and its report."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from handlers.cli.console import bar
from infra.audit.auditor import Auditor
from infra.audit.checkpoints import Checkpoint, ForgedCheckpoint, NoCheckpoint, Passed
from infra.audit.ed25519 import PublicKey
from infra.audit.hash_chain import ChainBroken, Verifier, Walk
from infra.audit.merkle import MerkleTree, NotProven


class Verification:
    """One verification: the last checkpoint that it passed, and the file where that is saved."""

    def __init__(self, keys: list[PublicKey], checkpoints: Iterable[Checkpoint], kept: Path | None) -> None:
        self._keys = keys
        self._checkpoints = checkpoints
        self._kept = kept
        self._passed: Passed | None = None
        self._walk = Walk()
        self._count = 0
        self.begun = 0

    def resumed(self, auditor: Auditor) -> Walk:
        """Continue from a checkpoint that an earlier run passed, if it is signed and its row has that hash."""
        assert self._kept is not None
        passed = Passed.read(self._kept)
        checkpoint = passed.checkpoint
        try:
            checkpoint.check(self._keys)
            tree = MerkleTree(size=checkpoint.position, peaks=[bytes.fromhex(peak) for peak in passed.peaks])
            if checkpoint.trees and checkpoint.trees.log_root != tree.root().hex():
                raise NotProven("the tree is not the checkpoint's")  # noqa: TRY301 - handled as the others
        except (ForgedCheckpoint, NotProven) as error:
            why = str(error).rstrip(".")
            raise NoCheckpoint(f"{self._kept} holds no verification to continue from: {why}.") from None
        found = auditor.hash_at(checkpoint.position)
        signed = f"the signed checkpoint of {checkpoint.time:%Y-%m-%d %H:%M:%S}"
        if found is None:
            missing = min(auditor.end().last + 1, checkpoint.position)
            raise ChainBroken(missing, f"its row is missing; {signed} says that the log reached {checkpoint.position}")
        if found.hex() != checkpoint.hash:
            raise ChainBroken(checkpoint.position, f"{signed}, from which to continue, has another hash than its row")
        self._passed, self.begun = passed, checkpoint.position
        return Walk(checkpoint.position, found, tree)

    def run(self, auditor: Auditor, walk: Walk) -> Walk:
        """Verify, with a progress bar on a terminal."""
        self._walk = walk
        with bar("verified") as at:
            verifier = Verifier(auditor, self._checkpoints, self._keys, walk, self._pass, at)
            return verifier.verify()

    def _pass(self, checkpoint: Checkpoint, walk: Walk) -> None:
        self._count += 1
        self._passed = Passed(checkpoint=checkpoint, peaks=tuple(peak.hex() for peak in walk.tree.peaks))

    def keep(self) -> None:
        """Save the progress for the next run."""
        if self._passed and self._kept:
            try:
                self._passed.write(self._kept)
            except OSError as error:
                sys.stderr.write(f"The progress cannot be saved in {self._kept}: {error.strerror}.\n")

    def interrupted(self) -> str:
        """Return the report of an interrupted run."""
        stop = f"Interrupted at position {self._walk.position}; everything up to there is as it was recorded."
        if self._passed and self._kept:
            return f"{stop} --from-checkpoint continues after position {self._passed.checkpoint.position}."
        return f"{stop} No signed checkpoint was passed yet, so the next run starts from the beginning."

    def result(self, begin_at: int, walk: Walk) -> dict[str, Any]:
        """Return the result for machines."""
        last = self._passed.checkpoint if self._passed else None
        return {
            "ok": True,
            "from_position": begin_at + 1,
            "to_position": walk.position,
            "hash": walk.hash.hex(),
            "log_root": walk.tree.root().hex(),
            "checkpoints": self._count,
            "last_checkpoint": last.model_dump(mode="json", exclude_none=True) if last else None,
        }

    def report(self, walk: Walk) -> str:
        """Return the result for people."""
        if not walk.position:
            return "The log is empty."
        count = walk.position - self.begun
        begin = f", positions {self.begun + 1:,} to {walk.position:,}" if self.begun and count else ""
        events = f"{count:,} events{begin}" if count else f"no event since position {self.begun:,}"
        whole = f"The log is as it was recorded: {events}, to hash {walk.hash.hex()}."
        if self._passed is None:
            return f"{whole}\nNo signed checkpoint was checked, so a tail that was cut off or rewritten goes unnoticed."
        last = self._passed.checkpoint
        agree = "1 signed checkpoint agrees" if self._count == 1 else f"{self._count:,} signed checkpoints agree"
        checked = agree if self._count else "No signed checkpoint came since"
        vouched = f"{checked}; the last is at position {last.position:,}, of {last.time:%Y-%m-%d %H:%M:%S}."
        if last.position < walk.position:
            vouched += " Only the chain vouches for what follows."
        return f"{whole}\n{vouched}"
