"""The narration of the demo: each scene in words, with the events that it appended and the rows that it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from infra.postgres.connections import connect
from infra.recorded import Recorded
from projections.engine.rows import Row, stored
from projections.maintenance.runner import PROJECTIONS, wait
from projections.timeline import TIMELINE

if TYPE_CHECKING:
    from handlers.runtime.composition import (
        Running,
    )  # the command line imports only StoryBroken, and stays quick to load

Snapshot = Mapping[tuple[str, tuple[object, ...]], Mapping[str, Any]]
TABLES: Sequence[type[Row]] = [
    table for projection in PROJECTIONS if projection is not TIMELINE for table in projection.tables
]
WAIT_S = 20.0


class StoryBroken(Exception):
    """Something in the story did not happen. The demo shows what is true, or stops."""


class Narrator:
    """Narrates the story of one account on a console, and keeps every figure that it claims."""

    def __init__(self, running: Running, account_id: str, console: Console) -> None:
        self.figures: dict[str, Any] = {}
        self._running = running
        self._account_id = account_id
        self._console = console
        self._shown = running.dependencies.log.head()
        self._seen: Snapshot = {}

    @contextmanager
    def scene(self, title: str, text: str = "") -> Iterator[None]:
        """Announce a scene, run it, then show the events that it appended and the rows that it changed."""
        self._console.print()
        self._console.rule(Text(title, style="bold"), align="left", style="dim")
        if text:
            self.say(text)
        yield
        self._show_events()
        self._show_rows()

    def say(self, text: str, **figures: Any) -> None:  # noqa: ANN401 - figures are numbers, dates and texts
        """Print a paragraph. ``figures`` are the figures that it claims, by name."""
        self.figures.update(figures)
        self._console.print(text, highlight=False)

    def refused(self, sentence: str) -> None:
        """Print a refusal."""
        self._console.print(Text.assemble(("refused: ", "bold red"), sentence))

    def quote(self, lines: str) -> None:
        """Print what somebody received, verbatim."""
        self._console.print(Padding(Text(lines, style="cyan"), (0, 4)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; columns of numbers are aligned right."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for n, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[n], int) or row[n] == "" for row in rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
        self._console.print()
        self._console.print(table)

    def until(self, happened: Callable[[Recorded], bool]) -> Recorded:
        """Wait for an event since the scene began.

        Raises:
            StoryBroken: it did not happen in time.
        """
        log, after = self._running.dependencies.log, self._shown
        while True:
            for recorded in log.read(after, limit=100):
                if happened(recorded):
                    return recorded
                after = recorded.position
            if not log.wait(after, WAIT_S):
                raise StoryBroken("An event of the story did not happen in time; see the logs of the servers.")

    def _show_events(self) -> None:
        for recorded in self._running.dependencies.log.read(self._shown, limit=1000):
            self._console.print(
                Text.assemble(
                    (f"  {recorded.position:>4} ", "dim"),
                    (f"{type(recorded.event).__name__:<24}", "green"),
                    (f" {recorded.stream} v{recorded.version}  by {recorded.cause.actor}", "dim"),
                ),
                no_wrap=True,
                overflow="ellipsis",
            )
            self._shown = recorded.position

    def _show_rows(self) -> None:
        with connect(self._running.database_url) as conn:
            if not wait(conn, self._shown, WAIT_S):
                raise StoryBroken("The read models did not catch up in time; see the logs of the servers.")
            now: Snapshot = {
                (table.TABLE, row.key()): vars(row)
                for table in TABLES
                for row in stored(conn, table, account_id=self._account_id)
            }
        for (table_name, key), row in now.items():
            before = self._seen.get((table_name, key), {})
            changed = [f"{c} {_short(before.get(c))} -> {_short(row[c])}" for c in row if row[c] != before.get(c)]
            if before and changed:
                self._show_row(table_name, key, ", ".join(changed))
            elif not before:
                shown = [f"{c} {_short(row[c])}" for c in row if _informative(c, row[c], key)]
                self._show_row(table_name, key, f"new, {', '.join(shown)}")
        for table_name, key in self._seen.keys() - now.keys():
            self._show_row(table_name, key, "row gone")
        self._seen = now

    def _show_row(self, table_name: str, key: tuple[object, ...], change: str) -> None:
        name = " ".join(map(str, key))
        self._console.print(
            Text.assemble(("       ", ""), (f"read.{table_name}", "blue"), (f" {name}: {change}", "dim")),
            no_wrap=True,
            overflow="ellipsis",
        )


def _informative(column: str, value: object, key: tuple[object, ...]) -> bool:
    """Whether a column of a new row is worth showing."""
    return value is not None and value not in key and not column.endswith("_id") and not isinstance(value, dict | list)


def _short(value: object) -> str:
    return "-" if value is None else f"{value:%Y-%m-%d %H:%M}" if hasattr(value, "hour") else str(value)
