"""Secrets and signing keys: from the settings, or generated once and kept beside embedded servers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json, to_json

from handlers.runtime.checkpoint_signing import Signer
from infra.audit.ed25519 import SigningKey, WrongKey
from infra.settings import EVERY_ACCOUNT, MASTER_KEY_BYTES, Sender, Settings, WrongSetting, decoded_master_key

MASTER_KEY = "master-key"
SIGNING_KEY = "signing-key.pem"
CHECKPOINT_FILE = "checkpoints.jsonl"
SENDERS = "senders.json"


def link_secret(settings: Settings, directory: Path | None) -> bytes:
    """Return the secret of invoice links: the setting, or one that is generated once and kept in ``directory``.

    Raises:
        WrongSetting: neither is given. All processes must share it, or one cannot mail the links that another issued.
    """
    if settings.link_secret:
        return settings.link_secret.get_secret_value().encode()
    if directory is None:
        raise WrongSetting("TRUNKLINE_LINK_SECRET is missing: 32 characters or more, the same for every process.")
    return _kept(directory / "link-secret", 32)


def master_key(settings: Settings, directory: Path | None) -> bytes | None:
    """Return the master key: the setting, or one that is generated once beside an embedded database.

    It wraps the keys of personal data. Returns None if there is neither. No key is generated for a database elsewhere:
    other processes may use it, and it outlives our directories.
    """
    if settings.master_key:
        return decoded_master_key(settings.master_key)
    if directory is None or settings.database_url:
        return None
    return _kept(directory / MASTER_KEY, MASTER_KEY_BYTES)


@contextmanager
def next_master_key(settings: Settings, directory: Path | None) -> Iterator[bytes]:
    """Yield the new master key followed by the earlier ones, while the keys that they wrap are wrapped again.

    The settings hold all of them. A directory gets a new one, and keeps it alone once the context ends without an
    error. Until then it holds both, so everything can be unwrapped whatever happens in between.

    Raises:
        WrongSetting: there is no master key.
    """
    if settings.master_key or settings.database_url or directory is None:
        yield _required(master_key(settings, directory))
        return
    file = directory / MASTER_KEY
    keys = _kept(file, MASTER_KEY_BYTES)
    if len(keys) == MASTER_KEY_BYTES:  # else an earlier call was interrupted, and is continued
        keys = secrets.token_bytes(MASTER_KEY_BYTES) + keys
        _replace(file, keys)
    yield keys
    _replace(file, keys[:MASTER_KEY_BYTES])


def _kept(file: Path, size: int) -> bytes:
    """Return the bytes of a private file. If it is missing, one concurrent call creates it with random bytes."""
    if not file.exists():
        made = _write_beside(file, secrets.token_bytes(size))
        with suppress(FileExistsError):  # the first one wins
            os.link(made, file)
        made.unlink()
    return file.read_bytes()


def _replace(file: Path, content: bytes) -> None:
    """Replace the bytes of a private file; durable on return."""
    _write_beside(file, content).rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _write_beside(file: Path, content: bytes) -> Path:
    made = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    return made


@dataclass(frozen=True)
class Secrets:
    """The secret of invoice links, and the key that wraps the keys of personal data."""

    link: bytes
    master: bytes


def secrets_of(settings: Settings, directory: Path | None) -> Secrets:
    """Return the secrets that a whole Trunkline needs.

    Raises:
        WrongSetting: one of them is missing.
    """
    return Secrets(link_secret(settings, directory), _required(master_key(settings, directory)))


def _required(master: bytes | None) -> bytes:
    if master is None:
        raise WrongSetting(
            "TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes, the same for every process on that database; "
            "openssl rand -base64 32 makes one."
        )
    return master


def signer_of(settings: Settings, directory: Path | None) -> Signer | None:
    """Return the signer of checkpoints: its key is the setting, or generated once beside embedded servers.

    Returns None if there is neither: with a key for each process, nobody could tell them from forged ones.

    Raises:
        WrongSetting: the key cannot be read.
    """
    embedded = directory if settings.database_url is None else None
    file = checkpoint_file(settings, directory)
    try:
        if settings.signing_key:
            return Signer(SigningKey.read(settings.signing_key), file)
        return Signer(SigningKey.kept_in(embedded / SIGNING_KEY), file) if embedded else None
    except WrongKey as error:
        raise WrongSetting(f"TRUNKLINE_SIGNING_KEY is wrong: {error}") from error


def checkpoint_file(settings: Settings, directory: Path | None) -> Path | None:
    """Return the file of signed checkpoints: the setting, or one beside embedded servers."""
    if settings.checkpoint_file or directory is None or settings.database_url:
        return settings.checkpoint_file
    return directory / CHECKPOINT_FILE


def local_senders(settings: Settings, directory: Path) -> Settings:
    """Return the settings, with a local sender if they name none. Its secret is generated once, in ``directory``.

    Whoever can read that directory, which also holds the data, may send commands.
    """
    if settings.senders:
        return settings
    kept = directory / SENDERS
    if not kept.exists():
        kept.touch(mode=0o600)
        kept.write_bytes(to_json([{"name": "local", "secret": secrets.token_hex(32), "accounts": [EVERY_ACCOUNT]}]))
    return settings.model_copy(
        update={"senders": tuple(Sender.model_validate(sender) for sender in from_json(kept.read_bytes()))}
    )
