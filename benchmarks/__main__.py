"""``python -m benchmarks [NAME] [--json]``: run one benchmark or all. Exit status 1 if the figures are void."""

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

from benchmarks import log, messages, projections
from benchmarks.history import told_history
from benchmarks.measure import Measure, Void

BENCHMARKS = {"log": log.measures, "projections": projections.measures, "messages": messages.measures}
MIN_ROUNDS = 5
PIPE_WIDTH = 120


def run(
    name: Annotated[
        str | None,
        typer.Argument(help="log, projections or messages; all by default. history writes a history to look at."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=MIN_ROUNDS, help="Interleaved rounds.")] = MIN_ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    accounts: Annotated[int, typer.Option(min=1, help="For history: the number of accounts.")] = 100,
    seed: Annotated[int, typer.Option(help="For history: another seed makes another history.")] = 1,
) -> None:
    """Run benchmarks."""
    if name == "history":
        told_history(accounts, seed, as_json=as_json)
        return
    if name is not None and name not in BENCHMARKS:
        sys.stderr.write(f"There is no benchmark {name}; choose one of {', '.join(BENCHMARKS)}.\n")
        raise typer.Exit(1)
    measures: dict[str, Measure] = {}
    try:
        with Progress(console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as progress:
            for chosen in [name] if name else BENCHMARKS:
                task = progress.add_task(chosen, total=None)
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
        by = "x" if m.baseline is not None else f" {m.unit}"
        baseline = "" if m.baseline is None else f"{m.baseline:,.4g}"
        figures = (f"{m.ours:,.4g}", baseline, m.unit, f"{m.ratio:.2f}{by}", f"{low:.2f}{by} to {high:.2f}{by}")
        table.add_row(measured, *figures, f"{m.floor:g}{by}", f"{m.aim:g}{by}")
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


if __name__ == "__main__":
    typer.run(run)
