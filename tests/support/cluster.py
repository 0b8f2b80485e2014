"""A cluster of three NATS servers, each a process that can be killed, paused and restarted."""

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
    """One server of the cluster; it restarts at the same address with its stored data."""

    def __init__(self, name: str, directory: Path, cluster_port: int, lines: dict[str, Line]) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.lines = lines
        """The proxied routes to the other servers, by name."""
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
                        "no_advertise": True,  # or servers would find routes around our proxies,
                        "pool_size": -1,  # or servers would add connections of their own
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
        """Pause the process (SIGSTOP): it answers nobody and does not notice."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)


class Cluster:
    """The cluster of three servers."""

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
        eventually(self._ready, "a cluster that accepts streams")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.stop()
        for line in self._lines():
            line.close()

    def part(self, node: Node) -> None:
        """Partition one server from the others but not from its clients. Neither side is notified."""
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
        """The leader of the event stream."""
        return self.nodes[eventually(self._leader, "a leader")]

    def follower(self) -> Node:
        leader = self.leader()
        return next(node for node in self.nodes.values() if node is not leader)

    def replicas(self) -> dict[str, int | None]:
        """The number of replicas of each stream."""

        async def ask() -> dict[str, int | None]:
            async with connected(self.url) as client:
                configs = [stream.config for stream in await client.jetstream().streams_info()]
                return {str(config.name): config.num_replicas for config in configs}

        return asyncio.run(ask())

    def _leader(self) -> str:
        streams = self._seen(self.url)
        return str(streams[EVENTS].leader or "") if EVENTS in streams else ""

    def whole(self) -> bool:
        """Whether every server sees each stream with a leader and two followers that are up to date."""
        seen = [self._seen(node.url) for node in self.nodes.values()]
        return all(
            streams.keys() == STREAMS and all(_followed(stream) for stream in streams.values()) for streams in seen
        )

    def _seen(self, url: str) -> dict[str, ClusterInfo]:
        """The streams as a server sees them; empty if it does not answer."""

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
        except Exception:  # noqa: BLE001 - it is not up yet
            return False
        return True


def _followed(stream: ClusterInfo) -> bool:
    followers = stream.replicas or []
    return bool(stream.leader) and len(followers) == 2 and all(each.current and not each.offline for each in followers)


async def _quiet(_error: Exception) -> None:
    """The server is not up or does not answer."""
