"""Ports for servers that have to come back at the same address."""

from __future__ import annotations

import random
import socket

BELOW_WHAT_SYSTEMS_GIVE_OUT = range(10_240, 32_768)


def free_port() -> int:
    """A port of loopback that nobody listens on, and that no connection is given by chance while its server is away."""
    while True:
        port = random.choice(BELOW_WHAT_SYSTEMS_GIVE_OUT)  # noqa: S311 - it keeps no secret
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
