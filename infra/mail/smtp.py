"""Send mail by SMTP (RFC 5321)."""

from __future__ import annotations

import re
import smtplib
import ssl
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final, Protocol, Self

from infra import tracing
from infra.settings import Security

_OK: Final = 250
_PERMANENT: Final = 500
"""Replies from this code on mean: do not send this message again unchanged (RFC 5321, 4.2.1)."""

KEPT_S: Final = 30.0
"""Connections idle for longer are not reused: a firewall or NAT on the way may have dropped them silently."""

_ADDRESS: Final = re.compile(r"[^\s<>]+@[^\s<>:,;]+")


class MailNotSent(Exception):
    """The message was not accepted. ``permanent`` says that sending it again will not help."""

    def __init__(self, sentence: str, *, permanent: bool) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class Mailer(Protocol):
    """Sends mail."""

    def send(self, message: EmailMessage) -> None:
        """Send a message to its one recipient.

        Raises:
            MailNotSent: it was not accepted.
        """


@dataclass(frozen=True)
class SmtpMailer:
    """Sends mail through one server. Idle connections are kept for further messages until the context ends.

    Thread-safe: each message has a connection of its own while it is sent. ``timeout_s`` applies to each step, in
    seconds; ``context`` says whose certificates are trusted.
    """

    host: str
    port: int
    security: Security = Security.NONE
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 10.0
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)
    _idle: deque[tuple[float, smtplib.SMTP]] = field(default_factory=deque, init=False, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the idle connections."""
        while self._idle:
            server = self._idle.pop()[1]
            with suppress(OSError):  # includes smtplib's errors; a failed QUIT changes nothing
                server.quit()
            server.close()

    def send(self, message: EmailMessage) -> None:
        """Send a message. An address that is not all ASCII needs a server with SMTPUTF8 (RFC 6531).

        Raises:
            MailNotSent: the server refused it, or could not be reached. If the connection broke at the end, the server
                may have accepted it: send it again with the same Message-ID.
        """
        with tracing.calling("send mail", {"server.address": self.host, "server.port": self.port}):
            self._send(message)

    def _send(self, message: EmailMessage) -> None:
        try:
            server = self._kept() or self._connect()
        except OSError as error:  # none of these is about the message
            raise MailNotSent(f"{self._name} cannot be used: {_describe(error)}.", permanent=False) from error
        with ExitStack() as stack:
            stack.callback(server.close)
            try:
                server.send_message(message)
            except OSError as error:
                raise MailNotSent(
                    f"{self._name} did not accept the message: {_describe(error)}.", permanent=_final(error)
                ) from error
            stack.pop_all()
            self._idle.append((time.monotonic(), server))

    def _kept(self) -> smtplib.SMTP | None:
        """Return an idle connection that the server still answers on, or None. Closes those that it finds stale."""
        with suppress(IndexError):
            while True:
                since, server = self._idle.pop()
                if time.monotonic() - since < KEPT_S:
                    with suppress(OSError):
                        if server.noop()[0] == _OK:
                            return server
                server.close()
        return None

    @property
    def _name(self) -> str:
        return f"The mail server {self.host}:{self.port}"

    def _connect(self) -> smtplib.SMTP:
        if self.security is Security.TLS:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_s, context=self.context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.timeout_s)
        try:
            if self.security is Security.STARTTLS:
                server.starttls(context=self.context)
            if self.username is not None:
                server.login(self.username, self.password or "")
        except BaseException:
            server.close()
            raise
        return server


def _reply(error: OSError) -> tuple[int, bytes | str] | None:
    match error:
        case smtplib.SMTPRecipientsRefused():
            return next(iter(error.recipients.values()))
        case smtplib.SMTPResponseException():
            return error.smtp_code, error.smtp_error
        case _:
            return None


def _final(error: OSError) -> bool:
    """Whether the failure is permanent: the server refused for good, or lacks what the address needs."""
    reply = _reply(error)
    return reply[0] >= _PERMANENT if reply else isinstance(error, smtplib.SMTPNotSupportedError)


def _describe(error: OSError) -> str:
    """Return the error as one line, without a full stop and without addresses, which are personal, for the log."""
    reply = _reply(error)
    if reply is None:
        said = str(error) or type(error).__name__
    else:
        code, text = reply
        said = f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return " ".join(_ADDRESS.sub("[address]", said).split()).rstrip(".")
