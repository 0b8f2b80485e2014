"""``trunkline projections``: how the read models stand, what they halt before, and making them anew."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from domain.messages import Refusal
from handlers.desk import Role
from handlers.keyring import master_key
from handlers.places import database
from infra.log import Log
from infra.postgres import connect
from infra.postgres_recorder import postgres_log
from infra.settings import settings
from projections.engine import Projection
from projections.poison import Skipped, retry, skip
from projections.rebuild import Rebuilt, Told, Verified, rebuild, verify
from projections.runner import PROJECTIONS, Status, projection_named, statuses

PIPE_WIDTH = 120
app = typer.Typer(no_args_is_help=True, help="How the read models stand; retry, skip, rebuild, verify.")

Data = Annotated[
    Path | None, typer.Option("--data", help="The directory of a demo --keep; else TRUNKLINE_DATABASE_URL is asked.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
As = Annotated[str | None, typer.Option("--as", help="Who decides, as role:name; an admin where not said.")]
Processes = Annotated[int | None, typer.Option(min=1, max=64, help="How many work at it; as it pays, where not said.")]


class Nobody(Refusal):
    """Who decides is not said as role:name."""


class NothingNamed(Refusal):
    """No projection is named, or some are although all are meant."""


@contextmanager
def _opened(data: Path | None) -> Iterator[tuple[str, Log]]:
    given = settings()
    with (
        database(given, data) as database_url,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
    ):
        yield database_url, log


@app.command("list")
def list_all(data: Data = None, as_json: AsJson = False) -> None:
    """Where each projection stands, what it halts before, and what it was told to skip."""
    with _opened(data) as (database_url, _), connect(database_url) as conn:
        found = statuses(conn)
    if as_json:
        _print_json(found)
        return
    table = Table()
    for column in ("projection", "position", "lag", "run", "state", "skipped"):
        table.add_column(column, justify="right" if column in ("position", "lag", "skipped") else "left")
    for status in found:
        table.add_row(
            status.name,
            f"{status.position:,}",
            f"{status.lag:,}",
            "yes" if status.running else "no",
            _state(status),
            f"{len(status.skipped):,}",
        )
    _console().print(table)
    _print_skipped([skipped for status in found for skipped in status.skipped])


@app.command()
def show(name: str, data: Data = None, as_json: AsJson = False) -> None:
    """One projection, with the whole of the error that it halts at."""
    projection = projection_named(name)
    with _opened(data) as (database_url, _), connect(database_url) as conn:
        (status,) = (status for status in statuses(conn) if status.name == projection.name)
    if as_json:
        _print_json(status)
        return
    console = _console()
    console.print(f"{status.name}: position {status.position:,}, {status.lag:,} behind the log; {_state(status)}.")
    if status.parked:
        event = status.parked
        console.print(f"{event.topic}, {event.stream} version {event.version}, parked at {event.parked_at:%F %T}:")
        console.print(event.traceback, markup=False, highlight=False)
    _print_skipped(status.skipped)


@app.command("retry")
def retry_parked(name: str, data: Data = None) -> None:
    """Try the event again that a projection halts before. Whoever runs the projection does it, within a second."""
    projection = projection_named(name)
    with _opened(data) as (database_url, _), connect(database_url) as conn:
        position = retry(conn, projection.name)
    _console().print(f"{name} tries position {position} again.", highlight=False)


@app.command("skip")
def skip_parked(
    name: str,
    reason: Annotated[str, typer.Option(help="Why it may be left out; every later report repeats it.")],
    data: Data = None,
    actor: As = None,
) -> None:
    """Leave the event out, for good, that a projection halts before."""
    projection, who = projection_named(name), _actor(actor)
    with _opened(data) as (database_url, _), connect(database_url) as conn:
        position = skip(conn, projection.name, who, reason)
    _console().print(f"{name} leaves out position {position}.", highlight=False)


@app.command("rebuild")
def rebuild_named(
    names: Annotated[list[str] | None, typer.Argument(help="One or several of them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, the log being read once.")] = False,
    processes: Processes = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make read models anew beside the live ones, and swap them in. Broken off, it goes on where it was."""
    projections = _named(names or [], everything)
    with _opened(data) as (database_url, log), _progress(quiet=as_json) as told:
        done = rebuild(database_url, log, projections, told, processes)
    if as_json:
        _print_json(done)
    else:
        _print_rebuilt(done)


@app.command("verify")
def verify_named(name: str, processes: Processes = None, data: Data = None, as_json: AsJson = False) -> None:
    """Replay a read model from nothing, and compare. Exit status 1 where the live one is not what the log says."""
    projection = projection_named(name)
    with _opened(data) as (database_url, log), _progress(quiet=as_json) as told:
        found = verify(database_url, log, projection, told, processes)
    if as_json:
        _print_json({"ok": found.ok, **vars(found)})
    else:
        _print_verified(found)
    if not found.ok:
        raise typer.Exit(1)


def _named(names: Sequence[str], everything: bool) -> Sequence[Projection]:
    if everything == bool(names):
        raise NothingNamed("Name the projections that are to be made anew, or say --all.")
    return PROJECTIONS if everything else [projection_named(name) for name in dict.fromkeys(names)]


def _actor(text: str | None) -> str:
    role, _, name = (text or f"admin:{getpass.getuser()}").partition(":")
    if role not in set(Role) or not name:
        raise Nobody(f"{text} is nobody; write role:name, with one of the roles {', '.join(Role)}.")
    return f"{role}:{name}"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Told]:
    """A bar with an estimate, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not sys.stderr.isatty()) as progress:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done, total=of)

        yield told


def _state(status: Status) -> str:
    return "works" if status.ok else _halted(status)


def _halted(status: Status) -> str:
    assert status.parked is not None
    event = status.parked
    return f"halted before position {event.position} ({event.topic}), attempt {event.attempts}: {event.error}"


def _print_skipped(skipped: Sequence[Skipped]) -> None:
    for s in skipped:
        _console().print(
            f"{s.name} leaves out position {s.position} ({s.topic}), as {s.actor} decided at {s.skipped_at:%F %T}: "
            f"{s.reason}",
            markup=False,
            highlight=False,
        )


def _print_rebuilt(done: Rebuilt) -> None:
    rows = ", ".join(f"{table} {count:,}" for table, count in done.rows.items())
    began = "went on, and is" if done.resumed else "is"
    _console().print(
        f"The rebuild of {', '.join(done.names)} {began} done after {done.took_s:.1f} s, at position "
        f"{done.position:,}; rows: {rows}.",
        highlight=False,
    )
    _print_skipped(done.skipped)


def _print_verified(found: Verified) -> None:
    console = _console()
    for table, (live, replay) in found.checksums.items():
        verdict = "equals its replay" if live == replay else "IS NOT WHAT THE LOG SAYS"
        console.print(f"{table} {verdict} at position {found.position:,}: {found.rows[table]:,} rows, {live}")
    for difference in found.differences:
        console.print(
            f"{difference.table} {dict(difference.key)}\n  live:   {_row(difference.live)}\n"
            f"  replay: {_row(difference.replay)}",
            markup=False,
            highlight=False,
        )
    _print_skipped(found.skipped)


def _row(row: Any) -> str:  # noqa: ANN401 - JSON
    return "no such row" if row is None else to_json(row).decode()


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _print_json(value: object) -> None:
    sys.stdout.write(to_json(value, indent=2).decode() + "\n")
