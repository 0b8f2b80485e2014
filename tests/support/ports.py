"""Ports for servers that must restart at the same address."""

from __future__ import annotations

import random
import socket

BELOW_WHAT_SYSTEMS_GIVE_OUT = range(10_240, 32_768)


def free_port() -> int:
    """A free loopback port outside the ephemeral range, so that no connection takes it while its server is down."""
    while True:
        port = random.choice(BELOW_WHAT_SYSTEMS_GIVE_OUT)  # noqa: S311 - not a secret
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
