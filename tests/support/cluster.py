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
from nats.aio.client import Client
from nats.js.api import ClusterInfo

from infra.audit.published_checkpoints import CHECKPOINTS, provision_checkpoints
from infra.broker.nats import COMMANDS, DEAD_LETTERS, EVENTS, connected, provision
from infra.servers.embedded_nats import NAME, _program
from infra.servers.supervisor import SupervisedProcess, exclusive
from infra.settings import Limits
from tests.support.at_work import eventually
from tests.support.lines import Line
from tests.support.ports import free_port

REPLICATED = Limits(replicas=3)
STREAMS = {EVENTS, COMMANDS, DEAD_LETTERS, CHECKPOINTS}


class Node:
    """One server of the cluster; it comes back at the same address with what it had stored."""

    def __init__(self, name: str, directory: Path, cluster_port: int, lines: dict[str, Line]) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.lines = lines
        """Those to the others, by their names."""
        self._directory = directory / name
        self._cluster_port = cluster_port
        self._stack = ExitStack()

    def start(self) -> None:
        lock = self._stack.enter_context(exclusive(self._directory, NAME))
        configuration = self._directory / "nats.conf"
        configuration.write_text(
            json.dumps(
                {
                    "server_name": self.name,
                    "host": "127.0.0.1",
                    "port": self.port,
                    "cluster": {
                        "name": "trunkline",
                        "listen": f"127.0.0.1:{self._cluster_port}",
                        "routes": [f"nats://127.0.0.1:{line.port}" for line in self.lines.values()],
                        "no_advertise": True,  # or they would find ways to each other beside our lines,
                        "pool_size": -1,  # as a server does that adds a connection to those it was called on
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
        """It answers nobody, and does not know."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)


class Cluster:
    """The three of them."""

    def __init__(self, directory: Path) -> None:
        names = ("veruca", "violet", "mike")
        ports = {name: free_port() for name in names}
        self.nodes = {
            name: Node(name, directory, ports[name], {other: Line(ports[other]) for other in names if other != name})
            for name in names
        }
        self.url = ",".join(node.url for node in self.nodes.values())

    def __enter__(self) -> Self:
        for node in self.nodes.values():
            node.start()
        eventually(self._ready, "a cluster that takes streams")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.stop()
        for line in self._lines():
            line.close()

    def part(self, node: Node) -> None:
        """Cut one off from the others, and not from its clients. Neither side is told."""
        for line in self._lines(node.name):
            line.cut()

    def join(self) -> None:
        for line in self._lines():
            line.mend()

    def _lines(self, of: str | None = None) -> list[Line]:
        return [
            line for name, node in self.nodes.items() for other, line in node.lines.items() if of in (None, name, other)
        ]

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
        streams = self._seen(self.url)
        return str(streams[EVENTS].leader or "") if EVENTS in streams else ""

    def whole(self) -> bool:
        """Whether every server sees that each stream has a leader, and that its two followers have all that it has."""
        seen = [self._seen(node.url) for node in self.nodes.values()]
        return all(
            streams.keys() == STREAMS and all(_followed(stream) for stream in streams.values()) for streams in seen
        )

    def _seen(self, url: str) -> dict[str, ClusterInfo]:
        """The streams as a server sees them; none where it does not say."""

        async def ask() -> dict[str, ClusterInfo]:
            client = Client()
            try:
                await client.connect(url.split(","), connect_timeout=1, max_reconnect_attempts=2, error_cb=_quiet)
                found = await client.jetstream(timeout=2).streams_info()
                return {str(stream.config.name): stream.cluster for stream in found if stream.cluster}
            finally:
                await client.close()

        try:
            return asyncio.run(ask())
        except (nats.errors.Error, OSError, TimeoutError):
            return {}

    def _ready(self) -> bool:
        async def ask() -> None:
            async with connected(self.url) as client:
                jetstream = client.jetstream(timeout=2)
                await provision(jetstream, {}, REPLICATED)
                await provision_checkpoints(jetstream, REPLICATED)

        try:
            asyncio.run(ask())
        except Exception:  # noqa: BLE001 - it is not there yet
            return False
        return True


def _followed(stream: ClusterInfo) -> bool:
    followers = stream.replicas or []
    return bool(stream.leader) and len(followers) == 2 and all(each.current and not each.offline for each in followers)


async def _quiet(_error: Exception) -> None:
    """It is not up, or does not answer."""
