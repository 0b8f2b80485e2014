"""What the commands of the command line have in common: their options, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console

PIPE_WIDTH = 120
Data = Annotated[
    Path | None, typer.Option("--data", help="The directory of a demo --keep; else TRUNKLINE_DATABASE_URL is asked.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console(*, quiet: bool = False) -> Console:
    """Where people read: as wide as their terminal, or as a page where it is none."""
    # What is shown may hold brackets and colons that people wrote: they are no markup.
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(to_json(value, indent=2).decode() + "\n")
