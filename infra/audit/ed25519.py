"""Ed25519 keys in PEM files: the private key that signs checkpoints, and its public half, which is no secret."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)


class WrongKey(Exception):
    """A key cannot be read, or is not the one that signed. The message names the file, never its content."""


class PublicKey:
    """Checks signatures."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = hashlib.sha256(der).hexdigest()
        """The SHA-256 of the key as DER: ``openssl pkey -pubin -in FILE -outform DER | sha256sum``."""

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a key from a PEM file.

        Raises:
            WrongKey: the file has no such key, or cannot be read.
        """
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise WrongKey(f"The public key {path} cannot be read: {error.strerror}.") from error
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise WrongKey(f"{path} is not a public Ed25519 key in PEM; trunkline audit public-key FILE writes one.")
        return cls(key)

    def pem(self) -> bytes:
        """Return the key in PEM."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the private half signed these bytes."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """Signs. Its bytes are never shown."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read a key from a PEM file (PKCS 8, not encrypted).

        Raises:
            WrongKey: the file has no such key, or cannot be read.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise WrongKey(f"The signing key {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise WrongKey(
                f"{path} is not an Ed25519 private key in PEM without a passphrase; "
                "openssl genpkey -algorithm ed25519 -out FILE makes one."
            )
        return cls(key)

    @classmethod
    def kept_in(cls, path: Path) -> SigningKey:
        """Read the key of a file; the first call creates it, readable by its owner only.

        Raises:
            WrongKey: it cannot be created or read.
        """
        try:
            if not path.exists():
                cls._make(path)
        except OSError as error:
            raise WrongKey(f"The signing key {path} cannot be created: {error.strerror}.") from error
        return cls.read(path)

    @staticmethod
    def _make(path: Path) -> None:
        """Create a key atomically. If two processes create one at once, both use the first."""
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        temporary = path.parent / f"{path.name}.{os.getpid()}"
        temporary.touch(mode=0o600)
        try:
            temporary.write_bytes(pem)
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes (RFC 8032)."""
        return self._key.sign(data)
