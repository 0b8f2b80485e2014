"""A mail server for demos and tests: it keeps messages for inspection, and delivers none."""

from __future__ import annotations

import asyncio
import email
import email.policy
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from email.message import EmailMessage
from functools import partial
from threading import Condition

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

BANNER = "a mail catcher: it delivers nothing"
HOST = "127.0.0.1"
_START_TIMEOUT_S = 10.0
_AS_IT_CAME = email.policy.SMTP.clone(refold_source="none")


class Catcher:
    """A running catcher: its address, and what it received. ``refusal``, if set, is the reply to each recipient."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.refusal: str | None = None
        self.sessions: list[SMTP] = []
        """One per connection."""
        self._came: list[bytes] = []
        self._arrived = Condition()

    @property
    def messages(self) -> list[EmailMessage]:
        """The messages received, first to last."""
        return [email.message_from_bytes(message, policy=_AS_IT_CAME) for message in list(self._came)]

    def wait_for(self, count: int, timeout_s: float) -> list[EmailMessage]:
        """Wait for at least ``count`` messages, and return all.

        Raises:
            TimeoutError: there are fewer after ``timeout_s`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._came) >= count, timeout_s):
                raise TimeoutError(f"{len(self._came)} of {count} messages came within {timeout_s} s.")
        return self.messages

    def keep(self, message: bytes) -> None:
        """Store a message."""
        with self._arrived:
            self._came.append(message)
            self._arrived.notify_all()


class _Hooks:
    """The handler of aiosmtpd, which sets names and arguments, and inspects all attributes at each session."""

    def __init__(self, catcher: Catcher) -> None:
        self._catcher = catcher

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept a recipient, or reply with the refusal."""
        del server, session, options
        if self._catcher.refusal is None:
            envelope.rcpt_tos.append(address)
        return self._catcher.refusal or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Accept a message."""
        del server, session
        assert isinstance(envelope.content, bytes)
        self._catcher.keep(envelope.content)
        return "250 OK, kept and not delivered"


@contextmanager
def mail_catcher(
    *,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    login: tuple[str, str] | None = None,
) -> Iterator[Catcher]:
    """Run a catcher on a free port of 127.0.0.1 until the context ends.

    ``tls`` enables TLS from the start, ``starttls`` on request; ``login`` is the only accepted user and password.
    """
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor(1, "mail-catcher") as thread:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each greeting waits 40 ms for an ACK
        catcher = Catcher(HOST, listener.getsockname()[1])
        stopper: Future[Callable[[], object]] = Future()

        def session() -> SMTP:
            def knows(server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: object) -> AuthResult:
                del server, session, envelope, mechanism
                return AuthResult(success=given == expected, handled=False)

            expected = LoginPassword(*(part.encode() for part in login)) if login else None
            return SMTP(
                _Hooks(catcher),
                hostname="localhost",
                ident=BANNER,
                enable_SMTPUTF8=True,
                tls_context=starttls,
                authenticator=knows,
                auth_require_tls=False,
                loop=asyncio.get_running_loop(),
            )

        serving = thread.submit(asyncio.run, _serve(session, catcher.sessions, listener, tls, stopper))
        stop = stopper.result(_START_TIMEOUT_S)
        try:
            yield catcher
        finally:
            stop()
            serving.result()


async def _serve(
    session: Callable[[], SMTP],
    sessions: list[SMTP],
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    stopper: Future[Callable[[], object]],
) -> None:
    """Serve until the function that ``stopper`` receives is called; then close open sessions, to avoid warnings."""

    def accept() -> SMTP:
        sessions.append(session())
        return sessions[-1]

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    server = await loop.create_server(accept, sock=listener, ssl=tls)
    stopper.set_result(partial(loop.call_soon_threadsafe, stop.set))
    await stop.wait()
    server.close()
    for open_session in sessions:
        if open_session.transport is not None:
            open_session.transport.close()
    await server.wait_closed()
