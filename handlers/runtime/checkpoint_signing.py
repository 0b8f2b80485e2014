"""Signing where the log has come to: one at a time over all processes, and nothing that an earlier one denies."""

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
    """What the log is now is not what was signed, or does not agree with itself: nobody signs that."""


class Busy(Refusal):
    """Another process makes a checkpoint at this moment."""


@dataclass(frozen=True)
class Signer:
    """The key that signs, and the file that checkpoints are added to; they are always published too."""

    key: SigningKey
    file: Path | None


@asynccontextmanager
async def alone(database_url: str, wait_s: float = 0.0) -> AsyncIterator[Auditor]:
    """Who reads the log, while nobody else makes checkpoints: so they stand in the order of positions.

    Raises:
        Busy: somebody does, and has not ended in time.
    """
    deadline = time.monotonic() + wait_s
    with auditing(database_url) as auditor:
        while not await asyncio.to_thread(auditor.alone, NAME):
            if time.monotonic() > deadline:
                raise Busy("Another process makes a checkpoint at this moment; try again.")
            await asyncio.sleep(POLL_S)
        yield auditor


async def sign(
    signer: Signer, database_url: str, jetstream: JetStreamContext, at: datetime, wait_s: float = 0.0
) -> Checkpoint | None:
    """Sign where the log has come to, if it has moved since the last checkpoint. Gives the last one; none of nothing.

    Raises:
        CannotSign: the log does not agree with its head, or with the last checkpoint.
        Busy: another process does the same, and has not ended in ``wait_s``.
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
    """Sign a position with its trees, by who is `alone` and has verified the log up to there.

    Raises:
        NoCheckpoint: the file cannot be read or written.
    """
    published, kept = await _last(signer, jetstream)
    checkpoint = Checkpoint.signed(signer.key, *head, at, trees)
    await _record(signer, jetstream, checkpoint, published, kept)
    return checkpoint


async def _last(signer: Signer, jetstream: JetStreamContext) -> tuple[Checkpoint | None, Checkpoint | None]:
    """What was published last, and what stands last in the file."""
    return await last_checkpoint(jetstream), last_in(signer.file) if signer.file else None


def _agreed(signer: Signer, auditor: Auditor, signed: list[Checkpoint | None]) -> tuple[int, bytes] | None:
    """Where the log ends, if that is what its last row says, and what was signed before still stands."""
    end = auditor.end()
    if not end.position and not end.last and not any(signed):
        return None
    if end.position != end.last or end.hash is None or end.hash != auditor.hash_at(end.last):
        raise CannotSign(
            f"log.head says that the log ends at {end.position}, and its rows, which end at {end.last}, do not agree; "
            "trunkline audit verify says more."
        )
    for checkpoint in signed:
        if checkpoint is None:
            continue
        try:
            checkpoint.check([signer.key.public])
        except WrongKey:
            continue  # of an older key: who verifies has its public half
        except ForgedCheckpoint as forged:
            raise CannotSign(f"What stands last among the checkpoints is forged: {forged}.") from None
        found = auditor.hash_at(checkpoint.position)
        if found is None or found.hex() != checkpoint.hash:
            raise CannotSign(
                f"Position {checkpoint.position} is not what was signed on {checkpoint.time:%Y-%m-%d %H:%M:%S}: the "
                "log was written anew; trunkline audit verify says more."
            )
    return end.last, end.hash


async def _record(
    signer: Signer,
    jetstream: JetStreamContext,
    checkpoint: Checkpoint,
    published: Checkpoint | None,
    kept: Checkpoint | None,
) -> None:
    """Add a checkpoint to the file, and publish it, wherever it does not stand last.

    A broker that has lost everything gets all that the file has.
    """
    if published is None and signer.file and kept:
        for old in checkpoints_in(signer.file):
            await publish_checkpoint(jetstream, old)
        published = kept
    if signer.file and (kept is None or kept != checkpoint):
        await asyncio.to_thread(append_to, signer.file, checkpoint)
    if published is None or published != checkpoint:
        await publish_checkpoint(jetstream, checkpoint)
