"""Sign checkpoints of the log: one process at a time, and never against an earlier checkpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nats.js import JetStreamContext

from domain.messages import Refusal
from infra.audit.auditor import Auditor, auditing
from infra.audit.checkpoints import Checkpoint, ForgedCheckpoint, Trees, append_to, checkpoints_in, last_in
from infra.audit.ed25519 import SigningKey, WrongKey
from infra.audit.published_checkpoints import last_checkpoint, publish_checkpoint

NAME = "checkpoints"
POLL_S = 0.1


class CannotSign(Exception):
    """The log contradicts itself or an earlier checkpoint, so it is not signed."""


class Busy(Refusal):
    """Another process is making a checkpoint."""


@dataclass(frozen=True)
class Signer:
    """The key that signs, and the file that checkpoints are appended to. They are always published too."""

    key: SigningKey
    file: Path | None


@asynccontextmanager
async def alone(database_url: str, wait_s: float = 0.0) -> AsyncIterator[Auditor]:
    """Yield a reader of the log while no other process makes checkpoints, so that they are in order of positions.

    Raises:
        Busy: another process did not finish within ``wait_s``.
    """
    deadline = time.monotonic() + wait_s
    with auditing(database_url) as auditor:
        while not await asyncio.to_thread(auditor.alone, NAME):
            if time.monotonic() > deadline:
                raise Busy("Another process is making a checkpoint; try again.")
            await asyncio.sleep(POLL_S)
        yield auditor


async def sign(
    signer: Signer, database_url: str, jetstream: JetStreamContext, at: datetime, wait_s: float = 0.0
) -> Checkpoint | None:
    """Sign the end of the log, if it has moved since the last checkpoint. Returns the last one; None for an empty log.

    Raises:
        CannotSign: the log contradicts its head or the last checkpoint.
        Busy: another process did not finish within ``wait_s``.
        NoCheckpoint: the file cannot be read or written.
    """
    async with alone(database_url, wait_s) as auditor:
        published, kept = await _last(signer, jetstream)
        head = await asyncio.to_thread(_agreed, signer, auditor, [published, kept])
        if head is None:
            return None
        position, hash_ = head
        last = max((one for one in (published, kept) if one), key=lambda one: one.position, default=None)
        if last is None or last.position < position:
            last = Checkpoint.signed(signer.key, position, hash_, at)
        await _record(signer, jetstream, last, published, kept)
        return last


async def sign_fully(
    signer: Signer, jetstream: JetStreamContext, at: datetime, head: tuple[int, bytes], trees: Trees
) -> Checkpoint:
    """Sign a position with its trees. The caller is `alone`, and has verified the log up to there.

    Raises:
        NoCheckpoint: the file cannot be read or written.
    """
    published, kept = await _last(signer, jetstream)
    checkpoint = Checkpoint.signed(signer.key, *head, at, trees)
    await _record(signer, jetstream, checkpoint, published, kept)
    return checkpoint


async def _last(signer: Signer, jetstream: JetStreamContext) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Return the last published checkpoint, and the last one in the file."""
    return await last_checkpoint(jetstream), last_in(signer.file) if signer.file else None


def _agreed(signer: Signer, auditor: Auditor, signed: list[Checkpoint | None]) -> tuple[int, bytes] | None:
    """Return the end of the log, after checking it against its last row and against earlier checkpoints."""
    end = auditor.end()
    if not end.position and not end.last and not any(signed):
        return None
    if end.position != end.last or end.hash is None or end.hash != auditor.hash_at(end.last):
        raise CannotSign(
            f"log.head says that the log ends at {end.position}, but its rows end at {end.last}; run "
            "trunkline audit verify."
        )
    for checkpoint in signed:
        if checkpoint is None:
            continue
        try:
            checkpoint.check([signer.key.public])
        except WrongKey:
            continue  # signed with an older key: a verifier has its public half
        except ForgedCheckpoint as forged:
            raise CannotSign(f"The last checkpoint is forged: {forged}.") from None
        found = auditor.hash_at(checkpoint.position)
        if found is None or found.hex() != checkpoint.hash:
            raise CannotSign(
                f"Position {checkpoint.position} differs from what was signed on {checkpoint.time:%Y-%m-%d %H:%M:%S}: "
                "the log was rewritten; run trunkline audit verify."
            )
    return end.last, end.hash


async def _record(
    signer: Signer,
    jetstream: JetStreamContext,
    checkpoint: Checkpoint,
    published: Checkpoint | None,
    kept: Checkpoint | None,
) -> None:
    """Append a checkpoint to the file and publish it, unless it is the last one there already.

    A broker that lost everything gets all checkpoints of the file.
    """
    if published is None and signer.file and kept:
        for old in checkpoints_in(signer.file):
            await publish_checkpoint(jetstream, old)
        published = kept
    if signer.file and (kept is None or kept != checkpoint):
        await asyncio.to_thread(append_to, signer.file, checkpoint)
    if published is None or published != checkpoint:
        await publish_checkpoint(jetstream, checkpoint)
