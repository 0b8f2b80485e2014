"""Mail, handed to a mail server by SMTP (RFC 5321)."""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from enum import StrEnum
from typing import Final, Protocol

from infra import tracing

_PERMANENT: Final = 500
"""From here on, a reply to a message means: do not send this again as it is (RFC 5321, 4.2.1)."""

_ADDRESS: Final = re.compile(r"[^\s<>]+@[^\s<>:,;]+")


class MailNotSent(Exception):
    """No server took the message. ``permanent`` says that none will, so that sending it again is of no use."""

    def __init__(self, sentence: str, *, permanent: bool) -> None:
        super().__init__(sentence)
        self.permanent = permanent


class Mailer(Protocol):
    """Whatever sends mail."""

    def send(self, message: EmailMessage) -> None:
        """Send a message to the one recipient that it names.

        Raises:
            MailNotSent: nobody took it.
        """


class Security(StrEnum):
    """How the connection is kept private: not at all, by STARTTLS (RFC 3207), or by TLS from its start (RFC 8314)."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


@dataclass(frozen=True)
class SmtpMailer:
    """A mail server, and how to get at it. Each message has a connection of its own, so threads may share a mailer.

    ``timeout_s`` holds for each step, in seconds; ``context`` says whose certificates are trusted.
    """

    host: str
    port: int
    security: Security = Security.NONE
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 10.0
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def send(self, message: EmailMessage) -> None:
        """Hand the message over. An address that is not all ASCII needs a server with SMTPUTF8 (RFC 6531).

        Raises:
            MailNotSent: the server refused it, or could not be reached. Where the connection broke in the last moment,
                the server may have taken it: sending it again, with the same Message-ID, is right.
        """
        with tracing.calling("send mail", {"server.address": self.host, "server.port": self.port}):
            self._send(message)

    def _send(self, message: EmailMessage) -> None:
        try:
            server = self._connect()
        except OSError as error:  # smtplib's errors are of this kind, too; none of them is about the message
            raise MailNotSent(f"{self._name} cannot be used: {_said(error)}.", permanent=False) from error
        with contextlib.closing(server):
            try:
                server.send_message(message)
            except OSError as error:
                raise MailNotSent(f"{self._name} did not take it: {_said(error)}.", permanent=_final(error)) from error
            with contextlib.suppress(OSError):  # the message is theirs now: a clumsy goodbye changes nothing
                server.quit()

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
    """Whether the server would say the same again: it refused for good, or lacks what the address needs."""
    reply = _reply(error)
    return reply[0] >= _PERMANENT if reply else isinstance(error, smtplib.SMTPNotSupportedError)


def _said(error: OSError) -> str:
    """The error in one line, without a full stop, and without addresses: they are personal, and errors are logged."""
    reply = _reply(error)
    if reply is None:
        said = str(error) or type(error).__name__
    else:
        code, text = reply
        said = f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return " ".join(_ADDRESS.sub("[address]", said).split()).rstrip(".")
