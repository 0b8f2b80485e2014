"""A proxy that can swallow a server's answer and cut the connection, so that an acknowledgement is lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CHUNK = 65536


@dataclass
class CuttingProxy:
    """Forwards bytes both ways. After `cut_next` is set, a request reaches the server but its answer is dropped."""

    server: tuple[str, int]
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    cut_next: threading.Event = field(default_factory=threading.Event)
    cuts: int = 0
    lines: int = 0
    """The number of open connections."""

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed at shutdown
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.server)
                self.lines += 1
                for pump in (self._forward, self._back):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                server.sendall(data)
        self._hang_up(client, server)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if self.cut_next.is_set():
                    self.cut_next.clear()
                    self.cuts += 1
                    break
                client.sendall(data)
        self._hang_up(client, server)
        self.lines -= 1

    def _hang_up(self, *lines: socket.socket) -> None:
        for line in lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()


@contextmanager
def cutting_proxy(host: str, port: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy((host, port))
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.listener.close()
