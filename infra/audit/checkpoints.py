"""Signed checkpoints: the state of the log at a position, kept outside the database so that nobody can revise it there.

A checkpoint is one line of JSON, on the broker (`infra.audit.published_checkpoints`) and in an append-only file. A full
checkpoint, made by an export, also carries the roots of two Merkle trees: over the log, and over each account's events.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_serializer

from domain.messages import what_is_wrong
from infra.audit.ed25519 import PublicKey, SigningKey, WrongKey

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Position = Annotated[int, Field(strict=True, ge=1, lt=2**63)]


class NoCheckpoint(Exception):
    """An expected checkpoint is missing or cannot be read. The message names the file."""


class ForgedCheckpoint(Exception):
    """The signature of a checkpoint does not match its content."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the checkpoint at position {position} does not match its signature")
        self.position = position


class Record(BaseModel):
    """A part of a checkpoint or a bundle. Unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Trees(Record):
    """The roots of the two trees of a full checkpoint; see `infra.audit.export_bundle` for their entries."""

    log_root: Sha256
    accounts: Position
    accounts_root: Sha256


class Checkpoint(Record):
    """At ``time`` the log ended at ``position`` with hash ``hash``. ``key`` is the fingerprint of the signing key.

    The time is the signer's clock: trust a checkpoint for its position, not for its time.
    """

    position: Position
    hash: Sha256
    time: AwareDatetime
    trees: Trees | None = None
    key: Sha256
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

    @field_serializer("time", when_used="json")
    def _as_signed(self, time: datetime) -> str:
        return time.astimezone(UTC).isoformat(timespec="microseconds")

    @classmethod
    def signed(
        cls, key: SigningKey, position: int, hash_: bytes, time: datetime, trees: Trees | None = None
    ) -> Checkpoint:
        """Make and sign a checkpoint."""
        draft = cls(
            position=position,
            hash=hash_.hex(),
            time=time.astimezone(UTC),
            trees=trees,
            key=key.public.fingerprint,
            signature=128 * "0",
        )
        return draft.model_copy(update={"signature": key.sign(draft.payload()).hex()})

    def payload(self) -> bytes:
        """Return the bytes that are signed: lines of text, so that standard tools can check a signature."""
        lines = [
            "trunkline checkpoint v1",
            f"position {self.position}",
            f"hash {self.hash}",
            f"time {self._as_signed(self.time)}",
        ]
        if self.trees:
            lines += [
                f"log-root {self.trees.log_root}",
                f"accounts {self.trees.accounts}",
                f"accounts-root {self.trees.accounts_root}",
            ]
        return "".join(f"{line}\n" for line in lines).encode()

    def check(self, keys: Collection[PublicKey]) -> None:
        """Check that one of the keys signed it.

        Raises:
            WrongKey: it names a key that is not among them.
            ForgedCheckpoint: it names one of them, but the signature does not match.
        """
        for key in keys:
            if key.fingerprint == self.key:
                if not key.verifies(bytes.fromhex(self.signature), self.payload()):
                    raise ForgedCheckpoint(self.position)
                return
        known = ", ".join(key.fingerprint[:16] for key in keys)
        raise WrongKey(
            f"The checkpoint at position {self.position} names the key {self.key[:16]}..., but the key given is "
            f"{known}...; give the public half of the key that signed it."
        )

    def line(self) -> bytes:
        """Return the checkpoint as one line of JSON."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class Passed(Record):
    """How far a log has been verified: a checkpoint that agreed, and the peaks of the Merkle tree there."""

    checkpoint: Checkpoint
    peaks: tuple[Sha256, ...]

    @classmethod
    def read(cls, path: Path) -> Passed:
        """Read a saved verification from a file.

        Raises:
            NoCheckpoint: the file cannot be read, or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NoCheckpoint(
                f"There is no verification to resume in {path}; run trunkline audit verify without it first."
            ) from None
        except OSError as error:
            raise NoCheckpoint(f"The verification in {path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise NoCheckpoint(f"{path} holds no verification to resume: {what_is_wrong(error)}.") from None

    def write(self, path: Path) -> None:
        """Save it to a file atomically: the old content or the new is there, never a part.

        Raises:
            OSError: the file cannot be written.
        """
        temporary = path.parent / f"{path.name}.{os.getpid()}"
        try:
            temporary.write_bytes(self.model_dump_json(exclude_none=True).encode() + b"\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def checkpoint_of(line: bytes, where: str) -> Checkpoint:
    """Parse a checkpoint from a line of JSON.

    Raises:
        NoCheckpoint: the line is not a checkpoint.
    """
    try:
        return Checkpoint.model_validate_json(line)
    except ValidationError as error:
        raise NoCheckpoint(f"{where} is not a checkpoint: {what_is_wrong(error)}.") from None


def checkpoints_in(path: Path) -> Iterator[Checkpoint]:
    """Yield the checkpoints of a file lazily, first to last.

    Raises:
        NoCheckpoint: the file cannot be read, a line is not a checkpoint, or they are not in the order of positions.
    """
    last = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return  # the writer was cut off before it reported this one to anybody
                found = checkpoint_of(line, f"Line {number} of {path}")
                if found.position < last:
                    raise NoCheckpoint(
                        f"Line {number} of {path} is at position {found.position}, after one at {last}: the log was "
                        "set back between them, or the file was changed."
                    )
                last = found.position
                yield found
    except OSError as error:
        raise NoCheckpoint(f"The checkpoints in {path} cannot be read: {error.strerror}.") from error


def last_in(path: Path) -> Checkpoint | None:
    """Return the last checkpoint of a file, or None if it has none or does not exist.

    Raises:
        NoCheckpoint: the file cannot be read, or its last line is not a checkpoint.
    """
    lines = _tail(path)
    return checkpoint_of(lines[-1], f"The last line of {path}") if lines else None


def _tail(path: Path, size: int = 65_536) -> list[bytes]:
    """Return the last complete lines of a file, at most ``size`` bytes of them."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            text = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NoCheckpoint(f"The checkpoints in {path} cannot be read: {error.strerror}.") from error
    return text[: text.rfind(b"\n") + 1].splitlines()


def append_to(path: Path, checkpoint: Checkpoint) -> None:
    """Append a checkpoint to a file durably. An incomplete line, left by a crash, is removed first.

    Raises:
        NoCheckpoint: the file cannot be written.
    """
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 65_536))
            text = file.read()
            if text and not text.endswith(b"\n"):
                file.truncate(end - len(text) + text.rfind(b"\n") + 1)
            file.write(checkpoint.line())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NoCheckpoint(f"The checkpoint cannot be added to {path}: {error.strerror}.") from error
