"""What Trunkline keeps secret, and signs with: from the settings, or made once and kept beside embedded servers."""

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
    """The secret behind invoice links: the setting, or one that is made once and kept in ``directory``.

    Raises:
        WrongSetting: neither is given. Every process must have the same, or links that one issues another cannot mail.
    """
    if settings.link_secret:
        return settings.link_secret.get_secret_value().encode()
    if directory is None:
        raise WrongSetting("TRUNKLINE_LINK_SECRET is missing: 32 characters or more, the same for every process.")
    return _kept(directory / "link-secret", 32)


def master_key(settings: Settings, directory: Path | None) -> bytes | None:
    """What wraps the keys of personal data: the setting, or one that is made once and kept beside an embedded database.

    None where there is neither. A database elsewhere may be other processes' too, and outlives our directories: so a
    key for it is never made by the way.
    """
    if settings.master_key:
        return decoded_master_key(settings.master_key)
    if directory is None or settings.database_url:
        return None
    return _kept(directory / MASTER_KEY, MASTER_KEY_BYTES)


@contextmanager
def next_master_key(settings: Settings, directory: Path | None) -> Iterator[bytes]:
    """The new master key, and behind it those before it, while all that they wrap is wrapped anew.

    The settings have them; a directory gets a new one of its own, and has it alone once the context has ended well.
    Until then it has both: whatever happens in between, what one of them wraps can be opened.

    Raises:
        WrongSetting: nobody has one.
    """
    if settings.master_key or settings.database_url or directory is None:
        yield _needed(master_key(settings, directory))
        return
    file = directory / MASTER_KEY
    keys = _kept(file, MASTER_KEY_BYTES)
    if len(keys) == MASTER_KEY_BYTES:  # else this was begun before, and is to be brought to its end
        keys = secrets.token_bytes(MASTER_KEY_BYTES) + keys
        _replace(file, keys)
    yield keys
    _replace(file, keys[:MASTER_KEY_BYTES])


def _kept(file: Path, size: int) -> bytes:
    """The bytes of a file that nobody else may read, made at random where it is not there; by two at once, once."""
    if not file.exists():
        made = _made_beside(file, secrets.token_bytes(size))
        with suppress(FileExistsError):  # whoever is first is whose stays
            os.link(made, file)
        made.unlink()
    return file.read_bytes()


def _replace(file: Path, content: bytes) -> None:
    """Put other bytes in the place of those of a file that nobody else may read; durable once it returns."""
    _made_beside(file, content).rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _made_beside(file: Path, content: bytes) -> Path:
    made = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    return made


@dataclass(frozen=True)
class Secrets:
    """The secret behind invoice links, and the key that wraps the keys of personal data."""

    link: bytes
    master: bytes


def secrets_of(settings: Settings, directory: Path | None) -> Secrets:
    """The secrets of a whole Trunkline.

    Raises:
        WrongSetting: one of them is missing.
    """
    return Secrets(link_secret(settings, directory), _needed(master_key(settings, directory)))


def _needed(master: bytes | None) -> bytes:
    if master is None:
        raise WrongSetting(
            "TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes, the same for every process on that database; "
            "openssl rand -base64 32 makes one."
        )
    return master


def signer_of(settings: Settings, directory: Path | None) -> Signer | None:
    """Who signs checkpoints: with the key of the settings, or one that is made once and kept beside embedded servers.

    None where there is neither: each process would sign with a key of its own, and nobody could tell them from others.

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
    """The file of signed checkpoints: the setting, or one beside embedded servers."""
    if settings.checkpoint_file or directory is None or settings.database_url:
        return settings.checkpoint_file
    return directory / CHECKPOINT_FILE


def local_senders(settings: Settings, directory: Path) -> Settings:
    """The settings, with a sender of this machine where they name none: its secret is made once, in ``directory``.

    Whoever can read that directory, which holds the data too, may send commands.
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
