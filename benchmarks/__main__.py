"""``python -m benchmarks [NAME] [--json]``: run one benchmark, or all. Exit status 1 where the figures are void."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import messages, projections
from benchmarks.measure import Measure, Void

BENCHMARKS = {"projections": projections.measures, "messages": messages.measures}
MIN_ROUNDS = 5
PIPE_WIDTH = 120


def run(
    name: Annotated[
        str | None, typer.Argument(help="One of: projections, messages. All of them where none is named.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=MIN_ROUNDS, help="Interleaved rounds.")] = MIN_ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run benchmarks."""
    if name is not None and name not in BENCHMARKS:
        sys.stderr.write(f"There is no benchmark {name}; there are {', '.join(BENCHMARKS)}.\n")
        raise typer.Exit(1)
    measures: dict[str, Measure] = {}
    try:
        with Progress(console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as progress:
            for chosen in [name] if name else BENCHMARKS:
                task = progress.add_task(chosen, total=rounds)
                measures |= BENCHMARKS[chosen](rounds, lambda: progress.advance(task))  # noqa: B023 - called at once
    except Void as void:
        sys.stderr.write(f"The figures are void: {void}\n")
        raise typer.Exit(1) from None
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    if as_json:
        document = {"machine": machine, "rounds": rounds, "measures": {n: asdict(m) for n, m in measures.items()}}
        sys.stdout.write(to_json(document, indent=2).decode() + "\n")
        return
    table = Table(title=f"{rounds} interleaved rounds, {machine['cpus']} CPUs")
    for column in ("measure", "ours", "baseline", "unit", "ratio", "range", "floor", "aim"):
        table.add_column(column, justify="left" if column in ("measure", "unit") else "right")
    for measured, m in measures.items():
        low, high = m.range
        figures = (f"{m.ours:,.0f}", f"{m.baseline:,.0f}", m.unit, f"{m.ratio:.1f}x", f"{low:.1f}x to {high:.1f}x")
        table.add_row(measured, *figures, f"{m.floor:g}x", f"{m.aim:g}x")
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


if __name__ == "__main__":
    typer.run(run)
