"""Serve an HTTP application with uvicorn in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from infra.servers.supervisor import ServerDidNotStart

STOP_TIMEOUT_S: Final = 5
KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than clients and proxies keep theirs (httpx 5 s, an AWS load balancer
60 s). So they close it, and no request arrives on a connection that the server has just closed."""


class _Server(uvicorn.Server):
    """A uvicorn server that signals when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


def listening(port: int = 0) -> socket.socket:
    """Return a socket bound to a port of 127.0.0.1 (0: a free one), so that its URL is known before serving.

    Raises:
        ServerDidNotStart: the port is taken.
    """
    # asyncio disables Nagle's algorithm only if the protocol is named; otherwise each answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ServerDidNotStart(
            f"Port {port} of 127.0.0.1 cannot be used: {reason}; set TRUNKLINE_HTTP_PORT to another port, or to 0."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, such as ``http://127.0.0.1:49152``."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(
    app: Any,  # noqa: ANN401 - uvicorn's own ASGI type is narrower than FastAPI's class
    listener: socket.socket | None = None,
) -> Iterator[str]:
    """Serve an ASGI application on a socket from `listening`, or on a free port.

    At the end, pending requests have `STOP_TIMEOUT_S` to finish. The main thread keeps handling signals.

    Yields:
        The URL, once the application answers.

    Raises:
        ServerDidNotStart: the application's start-up failed; the log has its traceback.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,  # the process configures its own logging
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = _Server(config)
    with listener or listening() as bound, ThreadPoolExecutor(1, "uvicorn") as pool:
        running = pool.submit(server.run, [bound])
        running.add_done_callback(lambda _: server.settled.set())
        server.settled.wait()
        if not server.started:
            raise ServerDidNotStart("The HTTP application did not start; the log says why.") from running.exception()
        try:
            yield url_of(bound)
        finally:
            server.should_exit = True
        running.result()
