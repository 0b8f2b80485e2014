from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import psutil
import psycopg
import pytest

from infra.servers import embedded_postgres as postgres_module
from infra.servers import supervisor
from infra.servers.embedded_nats import embedded_nats
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from infra.servers.supervisor import ServerDidNotStart, SupervisedProcess, exclusive

Family = Callable[[], list[psutil.Process]]

REPOSITORY = Path(__file__).parents[3]
AS_ROOT = os.geteuid() == 0
PLAIN_USER = "daemon"

BOTH_SERVERS = """
import asyncio, os, pwd, signal, sys
from pathlib import Path
import nats, psycopg
from infra.servers import supervisor
from infra.servers.embedded_nats import embedded_nats
from infra.servers.embedded_postgres import embedded_postgres

async def ask_jetstream(url):
    async with await nats.connect(url) as client:
        await client.jetstream().account_info()

signal.signal(signal.SIGINT, signal.default_int_handler)
directory = Path(sys.argv[1])
{before}
with embedded_postgres(directory) as database_url, embedded_nats(directory) as nats_url:
    try:
        print("serving", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT 1")
    asyncio.run(ask_jetstream(nats_url))
    print("served", flush=True)
print("stopped", flush=True)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory in which both servers have run before, so that a start makes no cluster."""
    with temporary_directory() as path:
        made_on_demand = path / "both" / "made on demand"
        with embedded_postgres(made_on_demand), embedded_nats(made_on_demand):
            pass
        yield made_on_demand


@pytest.fixture
def fresh_directory() -> Iterator[Path]:
    with temporary_directory() as path:
        yield path


@contextmanager
def another_process(directory: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A Python that runs both servers until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BOTH_SERVERS.format(before=before), str(directory)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended. A zombie counts: reaping it is up to its new parent."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def family() -> Family:
    """Processes started since the test began, with their descendants; other tests' servers may also be running."""
    ourselves = psutil.Process()
    before = set(ourselves.children())

    def born_since() -> list[psutil.Process]:
        children = [child for child in ourselves.children() if child not in before]
        return children + [grandchild for child in children for grandchild in child.children(recursive=True)]

    return born_since


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def publish(url: str, payload: bytes) -> None:
    async with await nats.connect(url) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="orders", subjects=["orders.*"])
        await jetstream.publish("orders.placed", payload)


async def last_message(url: str) -> bytes | None:
    async with await nats.connect(url) as client:
        return (await client.jetstream().get_last_msg("orders", "orders.placed")).data


def test_postgresql_keeps_its_data_and_its_password_over_a_restart(directory: Path) -> None:
    with embedded_postgres(directory) as first_url:
        query(first_url, "CREATE TABLE payments AS SELECT 'PAY-1' AS id")
    with embedded_postgres(directory) as second_url:
        assert query(second_url, "SELECT id FROM payments") == [("PAY-1",)]
    assert first_url.startswith("postgresql://trunkline:")
    assert first_url.rpartition(":")[0] == second_url.rpartition(":")[0]


def test_nats_keeps_its_streams_over_a_restart(fresh_directory: Path) -> None:
    with embedded_nats(fresh_directory) as url:
        asyncio.run(publish(url, b"PAY-1"))
    with embedded_nats(fresh_directory) as url:
        assert asyncio.run(last_message(url)) == b"PAY-1"


def test_postgresql_is_configured_to_lose_nothing(directory: Path) -> None:
    settings = "fsync, synchronous_commit, max_connections, shared_buffers, server_encoding, data_checksums"
    with embedded_postgres(directory) as url:
        shown = [query(url, f"SHOW {name}")[0][0] for name in settings.split(", ")]
        locale = query(url, "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'trunkline'")
    assert shown == ["on", "on", "200", "128MB", "UTF8", "on"]
    assert locale == [("b", "C.UTF-8")]


def test_nobody_gets_in_without_the_password(directory: Path) -> None:
    with embedded_postgres(directory) as url, pytest.raises(psycopg.OperationalError, match="password"):
        query(url.replace("trunkline:", "trunkline:not-"), "SELECT 1")
    with embedded_nats(directory) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
        raw.sendall(b'CONNECT {"verbose":true}\r\n')
        assert b"Authorization Violation" in b"".join(iter(lambda: raw.recv(4096), b""))


def test_only_the_owner_can_read_the_files_in_the_directory(directory: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o700} == {"pgdata", "jetstream"}
    assert all(mode == 0o600 for name, mode in modes.items() if name not in {"pgdata", "jetstream"})
    assert {"postgresql.password", "postgresql.log", "nats.conf", "nats.log"} <= modes.keys()


def test_the_servers_listen_on_loopback_and_nowhere_else(directory: Path, family: Family) -> None:
    with embedded_postgres(directory) as database_url, embedded_nats(directory) as nats_url:
        connections = [connection for process in family() for connection in process.net_connections(kind="all")]
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    ports = {int(database_url.rpartition(":")[2].partition("/")[0]), int(nats_url.rpartition(":")[2])}
    assert listening == {("127.0.0.1", port) for port in ports}
    assert not [connection for connection in connections if connection.family == socket.AF_UNIX and connection.laddr]


def test_the_servers_are_gone_after_the_block(directory: Path, family: Family) -> None:
    with embedded_postgres(directory), embedded_nats(directory):
        servers = family()
        names = {process.name() for process in servers}
    assert {"postgres", "nats-server"} <= names
    assert all(is_gone(process) for process in servers)


def test_the_watching_shell_is_gone_after_the_block_too(
    directory: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "KERNEL_SIGNALS_ORPHANS", False)
    with embedded_postgres(directory), embedded_nats(directory):
        processes = family()
        names = [process.name() for process in processes]
    assert names.count("sh") == 2
    assert all(is_gone(process) for process in processes)


@pytest.mark.parametrize("signalled_by", ["the kernel", "a watching shell"])
def test_a_parent_that_is_killed_leaves_no_process_behind(directory: Path, signalled_by: str) -> None:
    """The shell is for systems whose kernel sends no such signal, but it works on all."""
    if signalled_by == "the kernel" and not supervisor.KERNEL_SIGNALS_ORPHANS:
        pytest.skip("only Linux signals a child when its parent dies")
    before = f"supervisor.KERNEL_SIGNALS_ORPHANS = {signalled_by == 'the kernel'}"
    with another_process(directory, before) as parent:
        assert says(parent) == "serving"
        family = psutil.Process(parent.pid).children(recursive=True)
        names = [process.name() for process in family]
        parent.kill()
        assert eventually(lambda: all(is_gone(process) for process in family))
    assert names.count("postgres") > 3
    assert names.count("nats-server") == 1
    assert names.count("sh") == (2 if signalled_by == "a watching shell" else 0)


def test_a_killed_parents_directory_can_be_used_at_once(directory: Path) -> None:
    """The start waits for servers that are still stopping, instead of failing or running next to them."""
    with another_process(directory) as parent:
        assert says(parent) == "serving"
        parent.kill()
        with embedded_postgres(directory) as database_url, embedded_nats(directory):
            assert query(database_url, "SELECT 1") == [(1,)]


def test_ctrl_c_reaches_the_parent_and_not_the_servers(directory: Path) -> None:
    with another_process(directory) as parent:
        assert says(parent) == "serving"
        os.killpg(parent.pid, signal.SIGINT)
        assert [says(parent) for _ in range(3)] == ["interrupted", "served", "stopped"]
        assert parent.wait() == 0


def test_the_servers_outlive_the_thread_that_started_them(directory: Path) -> None:
    """To Linux, the parent's death is the end of the thread that forked, so this takes special care."""
    postgres, messages = embedded_postgres(directory), embedded_nats(directory)
    urls: list[str] = []
    starter = threading.Thread(target=lambda: urls.extend([postgres.__enter__(), messages.__enter__()]))
    starter.start()
    starter.join()
    try:
        assert query(urls[0], "SELECT 1") == [(1,)]
        asyncio.run(publish(urls[1], b"PAY-2"))
    finally:
        messages.__exit__(None, None, None)
        postgres.__exit__(None, None, None)


@pytest.mark.skipif(not AS_ROOT, reason="all other tests run as a plain user then")
def test_a_plain_user_runs_both_servers_as_itself(fresh_directory: Path) -> None:
    user = pwd.getpwnam(PLAIN_USER)
    own = fresh_directory / "own"
    own.mkdir(mode=0o700)
    shutil.chown(own, PLAIN_USER)
    # This Python may be readable by root only, so import now what it would load later.
    give_up_root = f"import encodings.idna; os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})"
    with another_process(own, give_up_root) as process:
        assert says(process) == "serving"
        family = psutil.Process(process.pid).children(recursive=True)
        assert {server.uids().effective for server in family} == {user.pw_uid}
        assert process.stdin is not None
        process.stdin.close()
        assert [says(process) for _ in range(2)] == ["served", "stopped"]


@pytest.mark.skipif(not AS_ROOT, reason="PostgreSQL runs as nobody only if it would run as root")
def test_root_runs_postgresql_as_nobody_in_nobodys_own_cluster(directory: Path, family: Family) -> None:
    with embedded_postgres(directory):
        owners = {process.uids().effective for process in family()}
    nobody = pwd.getpwnam("nobody").pw_uid
    assert owners == {nobody}
    assert (directory / "pgdata").stat().st_uid == nobody
    assert directory.stat().st_uid == os.geteuid()


@pytest.mark.skipif(not AS_ROOT, reason="a plain user's server has the user's access")
def test_a_folder_that_nobody_may_not_enter_is_named(fresh_directory: Path) -> None:
    closed = fresh_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServerDidNotStart, match=f"cannot pass through {closed.resolve()}: allow it"):
        embedded_postgres(closed / "data").__enter__()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not AS_ROOT, reason="a plain user's server needs no other user")
def test_a_machine_without_the_user_nobody_is_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "ROOTS_STAND_IN", "no-such-user")
    with pytest.raises(ServerDidNotStart, match="there is no user no-such-user: start as a plain user"):
        embedded_postgres(directory).__enter__()


def test_a_temporary_directory_can_be_passed_through_and_is_removed() -> None:
    with temporary_directory() as path:
        (path / "file").touch()
        mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == 0o711
    assert not path.exists()


def test_if_the_port_was_taken_meanwhile_another_is_tried(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free_port = postgres_module._free_port
        ports = [other.getsockname()[1], free_port()]
        monkeypatch.setattr(postgres_module, "_free_port", lambda: ports.pop(0))
        with embedded_postgres(directory) as url:
            assert query(url, "SELECT 1") == [(1,)]
    assert ports == []


def test_ports_that_stay_taken_are_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(postgres_module, "_free_port", lambda: other.getsockname()[1])
        with pytest.raises(ServerDidNotStart, match="Address already in use"):
            embedded_postgres(directory).__enter__()


def test_a_second_user_of_the_directory_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOCK_TIMEOUT_S", 0.1)
    with embedded_postgres(directory) as url, embedded_nats(directory):
        for second in (embedded_postgres(directory), embedded_nats(directory)):
            with pytest.raises(ServerDidNotStart, match=f"another process uses {directory.resolve()}; stop it"):
                second.__enter__()
        assert query(url, "SELECT 1") == [(1,)]


def test_a_first_start_that_was_killed_is_repeated(fresh_directory: Path) -> None:
    with another_process(fresh_directory) as parent:
        assert eventually((fresh_directory / "pgdata.unfinished" / "PG_VERSION").exists)
        parent.kill()
    assert not (fresh_directory / "pgdata").exists()
    with embedded_postgres(fresh_directory) as url:
        assert query(url, "SELECT 1") == [(1,)]
    assert not (fresh_directory / "pgdata.unfinished").exists()


def test_a_damaged_cluster_is_reported_with_what_postgresql_says(directory: Path) -> None:
    control = directory / "pgdata" / "global" / "pg_control"
    kept = control.rename(control.with_name("kept"))
    with pytest.raises(ServerDidNotStart, match=r"ended with exit code \d before it was ready(.|\n)*pg_control"):
        embedded_postgres(directory).__enter__()
    kept.rename(control)
    with embedded_postgres(directory) as url:
        assert query(url, "SELECT 1") == [(1,)]


def test_a_folder_that_is_not_a_cluster_is_left_alone(fresh_directory: Path) -> None:
    letter = fresh_directory / "pgdata" / "letter.txt"
    letter.parent.mkdir()
    letter.touch()
    with pytest.raises(ServerDidNotStart, match="is not a PostgreSQL cluster; move it away"):
        embedded_postgres(fresh_directory).__enter__()
    assert letter.exists()


def test_a_damaged_store_is_reported_with_what_nats_says(fresh_directory: Path) -> None:
    (fresh_directory / "jetstream").touch()
    with pytest.raises(
        ServerDidNotStart, match=r"NATS ended with exit code \d before it was ready(.|\n)*not a directory"
    ):
        embedded_nats(fresh_directory).__enter__()


def test_a_path_that_is_not_a_directory_is_reported(fresh_directory: Path) -> None:
    path = fresh_directory / "file"
    path.touch()
    for server in (embedded_postgres(path), embedded_nats(path)):
        with pytest.raises(ServerDidNotStart, match=r"did not start: .*Not a directory"):
            server.__enter__()


def test_a_server_that_never_becomes_ready_is_stopped(fresh_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 0.1)
    with exclusive(fresh_directory, "Cat") as lock:
        cat = SupervisedProcess(
            "Cat", ["/bin/sleep", "60"], fresh_directory / "log", lock=lock, stop_signal=signal.SIGTERM
        )
        with cat, pytest.raises(ServerDidNotStart, match="Cat was not ready within"):
            cat.wait_until(lambda: False)
    assert not psutil.pid_exists(cat.pid)


def test_a_server_that_does_not_stop_is_killed(fresh_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 0.1)
    log = fresh_directory / "log"
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo here to stay; while :; do read -r _; done"]
    with (
        exclusive(fresh_directory, "Mule") as lock,
        SupervisedProcess("Mule", stubborn, log, lock=lock, stop_signal=signal.SIGTERM) as mule,
    ):
        mule.wait_until(lambda: b"here to stay" in log.read_bytes())
    assert not psutil.pid_exists(mule.pid)


def test_a_child_whose_parent_died_before_its_signal_was_armed_ends(
    fresh_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supervisor.KERNEL_SIGNALS_ORPHANS:
        pytest.skip("only Linux signals a child when its parent dies")
    with exclusive(fresh_directory, "Orphan") as lock, monkeypatch.context() as before_the_fork:
        before_the_fork.setattr(os, "getpid", lambda: 0)
        orphan = SupervisedProcess(
            "Orphan", ["/bin/sleep", "60"], fresh_directory / "log", lock=lock, stop_signal=signal.SIGTERM
        )
        with orphan, pytest.raises(ServerDidNotStart, match="Orphan ended with exit code 1"):
            orphan.wait_for_end()
