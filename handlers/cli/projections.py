"""``trunkline projections``: the state of the read models, rebuilding and verifying them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from domain.messages import Refusal
from handlers.cli.console import AsJson, Data, draw, print_json, say
from handlers.cli.session import As, actor_of, opened_log
from infra.postgres.connections import connect
from projections.engine.poison import Skipped, retry, skip
from projections.engine.projection import Projection
from projections.maintenance.rebuild import Rebuilt, rebuild
from projections.maintenance.replay import OnProgress
from projections.maintenance.runner import PROJECTIONS, ProjectionStatus, projection_named, statuses
from projections.maintenance.verify import Verified, verify

app = typer.Typer(no_args_is_help=True, help="The read models: list, retry, skip, rebuild, verify.")

Processes = Annotated[
    int | None, typer.Option(min=1, max=64, help="The number of processes to use; by default chosen automatically.")
]


class NothingNamed(Refusal):
    """Neither projections nor all are named, or both."""


@app.command("list")
def list_all(data: Data = None, as_json: AsJson = False) -> None:
    """List projections: position, lag, the event that halts each, and skipped events."""
    with opened_log(data) as opened, connect(opened.database_url) as conn:
        found = statuses(conn)
    if as_json:
        print_json(found)
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
    draw(table)
    _print_skipped([skipped for status in found for skipped in status.skipped])


@app.command()
def show(name: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one projection, with the full error that halts it."""
    projection = projection_named(name)
    with opened_log(data) as opened, connect(opened.database_url) as conn:
        (status,) = (status for status in statuses(conn) if status.name == projection.name)
    if as_json:
        print_json(status)
        return
    say(f"{status.name}: position {status.position:,}, {status.lag:,} positions behind the log; {_state(status)}.")
    if status.parked:
        event = status.parked
        say(f"{event.topic}, {event.stream} version {event.version}, parked at {event.parked_at:%F %T}:")
        say(event.traceback)
    _print_skipped(status.skipped)


@app.command("retry")
def retry_parked(name: str, data: Data = None) -> None:
    """Retry the event that halts a projection. The process that runs it does so within a second."""
    projection = projection_named(name)
    with opened_log(data) as opened, connect(opened.database_url) as conn:
        position = retry(conn, projection.name)
    say(f"{name} will retry position {position}.")


@app.command("skip")
def skip_parked(
    name: str,
    reason: Annotated[str, typer.Option(help="Why the event may be skipped; every later report repeats it.")],
    data: Data = None,
    actor: As = None,
) -> None:
    """Skip the event that halts a projection, for good."""
    projection, who = projection_named(name), str(actor_of(actor, None))
    with opened_log(data) as opened, connect(opened.database_url) as conn:
        position = skip(conn, projection.name, who, reason)
    say(f"{name} skips position {position}.")


@app.command("rebuild")
def rebuild_named(
    names: Annotated[list[str] | None, typer.Argument(help="The projections to rebuild.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Rebuild all of them, reading the log once.")] = False,
    processes: Processes = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild read models in shadow tables and swap them in. Resumes if interrupted."""
    projections = _named(names or [], everything)
    with opened_log(data) as opened, _progress(quiet=as_json) as on_progress:
        done = rebuild(opened.database_url, opened.log, projections, on_progress, processes)
    if as_json:
        print_json(done)
    else:
        _print_rebuilt(done)


@app.command("verify")
def verify_named(name: str, processes: Processes = None, data: Data = None, as_json: AsJson = False) -> None:
    """Replay a read model from the log and compare it. Exit status 1 if the live one differs."""
    projection = projection_named(name)
    with opened_log(data) as opened, _progress(quiet=as_json) as on_progress:
        found = verify(opened.database_url, opened.log, projection, on_progress, processes)
    if as_json:
        print_json({"ok": found.ok, **vars(found)})
    else:
        _print_verified(found)
    if not found.ok:
        raise typer.Exit(1)


def _named(names: Sequence[str], everything: bool) -> Sequence[Projection]:
    if everything == bool(names):
        raise NothingNamed("Name the projections to rebuild, or use --all.")
    return PROJECTIONS if everything else [projection_named(name) for name in dict.fromkeys(names)]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[OnProgress]:
    """Yield a progress callback, which draws a bar with an estimate on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, disable=quiet or not sys.stderr.isatty()) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done, total=of)

        yield on_progress


def _state(status: ProjectionStatus) -> str:
    return "works" if status.ok else _halted(status)


def _halted(status: ProjectionStatus) -> str:
    assert status.parked is not None
    event = status.parked
    return f"halted before position {event.position} ({event.topic}), attempt {event.attempts}: {event.error}"


def _print_skipped(skipped: Sequence[Skipped]) -> None:
    for s in skipped:
        decided = f"as {s.actor} decided at {s.skipped_at:%F %T}"
        say(f"{s.name} skips position {s.position} ({s.topic}), {decided}: {s.reason}")


def _print_rebuilt(done: Rebuilt) -> None:
    rows = ", ".join(f"{table} {count:,}" for table, count in done.rows.items())
    began = "went on, and is" if done.resumed else "is"
    say(
        f"The rebuild of {', '.join(done.names)} {began} done after {done.took_s:.1f} s, at position "
        f"{done.position:,}; rows: {rows}."
    )
    _print_skipped(done.skipped)


def _print_verified(found: Verified) -> None:
    for table, (live, replay) in found.checksums.items():
        verdict = "equals its replay" if live == replay else "IS NOT WHAT THE LOG SAYS"
        say(f"{table} {verdict} at position {found.position:,}: {found.rows[table]:,} rows, {live}")
    for difference in found.differences:
        say(
            f"{difference.table} {dict(difference.key)}\n  live:   {_row(difference.live)}\n"
            f"  replay: {_row(difference.replay)}"
        )
    _print_skipped(found.skipped)


def _row(row: Any) -> str:  # noqa: ANN401 - JSON
    return "no such row" if row is None else to_json(row).decode()
