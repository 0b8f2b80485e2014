"""An HTTP application on a socket, served by uvicorn in a thread of this process."""

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
60 s), so that it is they who close it, and no request is on its way to a connection that the server just closed."""


class _Server(uvicorn.Server):
    """A uvicorn server that says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


def listening(port: int = 0) -> socket.socket:
    """A socket on a port of 127.0.0.1 (a free one where 0), bound already, so that its URL is known.

    Raises:
        ServerDidNotStart: the port is taken.
    """
    # asyncio turns Nagle's algorithm off where the protocol is named; else every answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ServerDidNotStart(
            f"Port {port} of 127.0.0.1 cannot be used, {reason}; set TRUNKLINE_HTTP_PORT to another one, or to 0."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL of whoever serves a socket, such as ``http://127.0.0.1:49152``."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(
    app: Any,  # noqa: ANN401 - uvicorn's own ASGI type is narrower than FastAPI's class
    listener: socket.socket | None = None,
) -> Iterator[str]:
    """Serve an ASGI application on a socket of `listening`; on a free port where none is given.

    At the end requests under way have `STOP_TIMEOUT_S` to finish. Signals stay with the main thread.

    Yields:
        The URL; it answers already.

    Raises:
        ServerDidNotStart: the application's start-up failed; the log has its traceback.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,  # how this process logs is decided elsewhere
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
