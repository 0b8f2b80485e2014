"""What the commands of the command line have in common: their options, and how they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PIPE_WIDTH = 120
Data = Annotated[
    Path | None,
    typer.Option("--data", help="The directory of trunkline up or demo --keep, where no TRUNKLINE_*_URL is set."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `until_nobody_reads`; the library would end the program, with 1."""
        raise  # noqa: PLE0704 - what the library has just caught


def console(*, quiet: bool = False) -> Console:
    """Where people read: as wide as their terminal, or as a page where it is none."""
    # What is shown may hold brackets and colons that people wrote: they are no markup.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return _Output(quiet=quiet, width=width, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print a sentence; only a terminal breaks it, so that nothing which is copied out of it is cut."""
    with until_nobody_reads():
        console().print(text, soft_wrap=True)


def draw(table: Table) -> None:
    """Print a table."""
    with until_nobody_reads():
        console().print(table)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Tells how far something has come: on a terminal by a bar, and in a pipe not at all."""
    drawn = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=drawn, disable=not drawn.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda position, end: progress.update(task, completed=position, total=end)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    with until_nobody_reads():
        sys.stdout.write(to_json(value, indent=2).decode() + "\n")


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Print until whoever reads has read enough, as ``head`` has at some point: that is no error, and ends it.

    What is printed after that goes nowhere; or the interpreter complains at its end.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
