"""Connections between two servers that can fall silent, as in a network partition."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

CHUNK_BYTES = 65_536


class Line:
    """Forwards connections on ``port`` to the other end until it is cut; bytes in flight wait, as in TCP.

    Neither end is notified: connections stay open, and new ones are accepted but not answered.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._whole = threading.Event()
        self._whole.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def hang_up(self) -> None:
        """Close its connections, as if the other end had died."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._whole.set()
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(caller)
            self._begin(self._connect, caller)

    def _connect(self, caller: socket.socket) -> None:
        self._whole.wait()
        try:
            called = socket.create_connection(self._target)
        except OSError:  # the server is down: the caller sees a closed connection, as on any network
            with suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)
            return
        self._sockets.append(called)
        self._begin(self._carry, caller, called)
        self._carry(called, caller)

    def _begin(self, does: Callable[..., None], *given: socket.socket) -> None:
        thread = threading.Thread(target=does, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._whole.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
