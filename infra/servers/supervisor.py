"""Servers as child processes: wait until they are ready, and let none outlive the process that started it.

For Linux and macOS; on other systems, configure external servers by URL.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, Self, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
LOCK_TIMEOUT_S: Final = 3.0  # servers whose parent was just killed may still be stopping
POLL_S: Final = 0.01
TAIL_LINES: Final = 20

# Linux signals a child whose parent dies (prctl(2), PR_SET_PDEATHSIG). Other systems have no equivalent: there a shell
# waits for the end of a pipe that only this process holds open, and then sends the same signal.
KERNEL_SIGNALS_ORPHANS: Final = sys.platform == "linux"
PR_SET_PDEATHSIG: Final = 1


class ServerDidNotStart(Exception):
    """A server did not start. The message is a sentence for the user, followed by the end of the server's log."""


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read or write: an opener for ``open``."""
    return os.open(path, flags, mode=0o600)


class Identity(TypedDict, total=False):
    """The arguments of subprocess that select a user."""

    user: str
    group: int
    extra_groups: list[int]


def identity(user: str | None) -> Identity:
    """Return subprocess arguments that run a child as ``user`` without further groups; ``None`` changes nothing."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


@contextmanager
def exclusive(directory: Path, name: str) -> Iterator[int]:
    """Create the directory if it is missing, and lock it for the server called ``name``.

    Yields:
        The descriptor of the lock. The server inherits it, so the directory stays locked for as long as any process of
        the server lives, even after the parent died.

    Raises:
        ServerDidNotStart: Another process holds the lock.
    """
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o711)  # a server that runs as another user must pass through; every file in it is private
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with open(directory / f"{name.lower()}.lock", "ab", opener=private) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    sentence = (
                        f"{name} did not start: another process uses {directory}; stop it or use another directory."
                    )
                    raise ServerDidNotStart(sentence) from None
                time.sleep(POLL_S)
        yield lock.fileno()


class SupervisedProcess:
    """A child process that is stopped at the end of its ``with`` block, and signalled to stop if its parent dies.

    Any thread may enter and leave the block, but it must end before the main thread does.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        lock: int,
        stop_signal: signal.Signals,
        user: str | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> None:
        """Start the child.

        Args:
            name: The server's name in messages.
            command: The absolute path of the program, and its arguments.
            log: The file that its output is appended to.
            lock: The descriptor from `exclusive`.
            stop_signal: The signal that stops it cleanly; also sent if its parent dies.
            user: The user that it runs as, if not that of this process.
            stdin: Its standard input.

        Raises:
            OSError: The program or its log cannot be opened.
        """
        self._name, self._log, self._stop_signal = name, log, stop_signal
        # To the kernel, the parent's death is the end of the thread that forked, and the caller's thread may end at any
        # time. So each child is started by its own thread, which lives for as long as the child does.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-parent")
        before_exec = _ending_with_parent(stop_signal) if KERNEL_SIGNALS_ORPHANS else None
        with open(log, "ab", opener=private) as output:
            self._log_start = output.tell()
            self._process = self._starter.submit(
                lambda: subprocess.Popen(  # noqa: S603 - every command is this project's own
                    command,
                    stdin=stdin,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",  # the current one may be inaccessible to the user
                    env={},  # pass on neither our secrets nor the user's PGPORT or locale
                    start_new_session=True,  # we handle Ctrl-C: it must not reach the server first
                    pass_fds=[lock],
                    preexec_fn=before_exec,  # noqa: PLW1509 - it takes no lock that another thread might hold
                    **identity(user),
                )
            ).result()
        self.pid: Final = self._process.pid
        self._watcher = None if KERNEL_SIGNALS_ORPHANS else _watcher(self.pid, stop_signal, user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Poll until the server is ready.

        Raises:
            ServerDidNotStart: It ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None:
            if is_ready():
                return
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {START_TIMEOUT_S:g} s")
            time.sleep(POLL_S)
        raise self._failure(f"ended with exit code {self._process.returncode} before it was ready")

    def wait_for_end(self) -> None:
        """Wait until a one-off program has ended.

        Raises:
            ServerDidNotStart: It failed, or did not end in time.
        """
        try:
            exit_code = self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {START_TIMEOUT_S:g} s") from None
        if exit_code:
            raise self._failure(f"ended with exit code {exit_code}")

    def stop(self) -> None:
        """Stop the process and wait for its end: cleanly, or by SIGKILL if that takes too long."""
        try:
            self._process.send_signal(self._stop_signal)
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._starter.shutdown()
            if self._watcher is not None:
                self._watcher.kill()
                self._watcher.communicate()

    def _failure(self, what: str) -> ServerDidNotStart:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            tail = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        return ServerDidNotStart("\n".join([f"{self._name} {what}; its log {self._log} ends with:", *tail]))


def _ending_with_parent(stop_signal: signal.Signals) -> Callable[[], None]:
    """Return the function that the child calls before exec, after the change of user, which would reset the setting."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # loaded here: a forked child should load nothing
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

    def end_with_parent() -> None:
        signal.signal(stop_signal, signal.SIG_DFL)  # undo Python's handler, or an inherited "ignore"
        armed = prctl(PR_SET_PDEATHSIG, stop_signal, 0, 0, 0) == 0
        if not armed or os.getppid() != parent:  # the parent may have died just before
            os._exit(1)

    return end_with_parent


def _watcher(pid: int, stop_signal: signal.Signals, user: str | None) -> subprocess.Popen[bytes]:
    """Start the shell that signals the server when this process, and with it the pipe's other end, is gone."""
    command = ["/bin/sh", "-c", 'read -r _; kill -s "$0" "$1"', stop_signal.name.removeprefix("SIG"), str(pid)]
    return subprocess.Popen(  # noqa: S603 - a fixed command of our own
        command, stdin=subprocess.PIPE, cwd="/", env={}, start_new_session=True, **identity(user)
    )
