"""What all commands share: common options, and printing."""

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
    typer.Option("--data", help="The directory of trunkline up or demo --keep, if no TRUNKLINE_*_URL is set."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `until_pipe_closes`; the library would exit with 1."""
        raise  # noqa: PLE0704 - the error that the library has just caught


def console(*, quiet: bool = False) -> Console:
    """Return a console, as wide as the terminal; `PIPE_WIDTH` in a pipe."""
    # Texts may hold brackets and colons that people wrote: they are not markup.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return _Output(quiet=quiet, width=width, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print a sentence. Only a terminal wraps it, so that copied text is not cut."""
    with until_pipe_closes():
        console().print(text, soft_wrap=True)


def draw(table: Table) -> None:
    """Print a table."""
    with until_pipe_closes():
        console().print(table)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a progress callback. It draws a bar on a terminal, and nothing in a pipe."""
    drawn = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=drawn, disable=not drawn.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda position, end: progress.update(task, completed=position, total=end)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    with until_pipe_closes():
        sys.stdout.write(to_json(value, indent=2).decode() + "\n")


@contextmanager
def until_pipe_closes() -> Iterator[None]:
    """Print until the reader closes the pipe, as ``head`` does: that is not an error.

    Later output goes nowhere, or the interpreter would complain at its exit.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
