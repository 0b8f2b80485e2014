"""Three NATS servers in a cluster, each a process that can be killed, stopped in its tracks, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import nats

from infra.embedded_nats import NAME, _program
from infra.nats import EVENTS, Limits, connected, provision
from infra.supervisor import SupervisedProcess, exclusive
from tests.handlers.at_work import eventually
from tests.handlers.test_worker import free_port

REPLICATED = Limits(replicas=3)


class Node:
    """One server of the cluster; it comes back at the same address with what it had stored."""

    def __init__(self, name: str, directory: Path, routes: dict[str, int]) -> None:
        self.name = name
        self.port = free_port()
        self._directory = directory / name
        self._routes = routes
        self._stack = ExitStack()

    def start(self) -> None:
        lock = self._stack.enter_context(exclusive(self._directory, NAME))
        configuration = self._directory / "nats.conf"
        others = [f"nats://127.0.0.1:{port}" for name, port in self._routes.items() if name != self.name]
        configuration.write_text(
            json.dumps(
                {
                    "server_name": self.name,
                    "host": "127.0.0.1",
                    "port": self.port,
                    "cluster": {
                        "name": "trunkline",
                        "listen": f"127.0.0.1:{self._routes[self.name]}",
                        "routes": others,
                    },
                    "jetstream": {"store_dir": str(self._directory)},
                }
            )
        )
        command = [str(_program()), "--config", str(configuration)]
        log = self._directory / "nats.log"
        self.server = SupervisedProcess(NAME, command, log, lock=lock, stop_signal=signal.SIGTERM)
        self._stack.enter_context(self.server)

    def stop(self) -> None:
        self._stack.close()

    def kill(self) -> None:
        """`kill -9`."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.stop()

    def freeze(self) -> None:
        """It answers nobody, and does not know: what a partition looks like to the others."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)


class Cluster:
    """The three of them."""

    def __init__(self, directory: Path) -> None:
        names = ("veruca", "violet", "mike")
        routes = {name: free_port() for name in names}
        self.nodes = {name: Node(name, directory, routes) for name in names}
        self.url = ",".join(f"nats://127.0.0.1:{node.port}" for node in self.nodes.values())

    def __enter__(self) -> Self:
        for node in self.nodes.values():
            node.start()
        eventually(self._ready, "a cluster that takes streams")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.stop()

    def leader(self) -> Node:
        """Who leads the stream of events."""
        return self.nodes[eventually(self._leader, "a leader")]

    def follower(self) -> Node:
        leader = self.leader()
        return next(node for node in self.nodes.values() if node is not leader)

    def replicas(self) -> dict[str, int | None]:
        """On how many servers each stream is kept."""

        async def ask() -> dict[str, int | None]:
            async with connected(self.url) as client:
                configs = [stream.config for stream in await client.jetstream().streams_info()]
                return {str(config.name): config.num_replicas for config in configs}

        return asyncio.run(ask())

    def _leader(self) -> str:
        async def ask() -> str:
            client = await nats.connect(self.url.split(","), connect_timeout=1, max_reconnect_attempts=2)
            try:
                cluster = (await client.jetstream().stream_info(EVENTS)).cluster
                return str(cluster.leader or "") if cluster else ""
            finally:
                await client.close()

        try:
            return asyncio.run(ask())
        except (nats.errors.Error, OSError, TimeoutError):
            return ""

    def _ready(self) -> bool:
        async def ask() -> None:
            async with connected(self.url) as client:
                await provision(client.jetstream(timeout=2), {}, REPLICATED)

        try:
            asyncio.run(ask())
        except Exception:  # noqa: BLE001 - it is not there yet
            return False
        return True
