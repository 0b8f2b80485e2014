"""How the demonstration is told: each scene in words, with the events it appended and the rows it changed."""

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
from projections.engine.projection import Row, stored
from projections.maintenance.runner import PROJECTIONS, wait
from projections.timeline import TIMELINE

if TYPE_CHECKING:
    from handlers.runtime.composition import Running  # the command line knows what may go wrong here, and loads no more

Snapshot = Mapping[tuple[str, tuple[object, ...]], Mapping[str, Any]]
TABLES: Sequence[type[Row]] = [
    table for projection in PROJECTIONS if projection is not TIMELINE for table in projection.tables
]
WAIT_S = 20.0


class StoryBroken(Exception):
    """Something that the story tells of did not happen. The demonstration shows what is, or nothing."""


class Narrator:
    """Tells one account's story on a console, and keeps every figure that it claims."""

    def __init__(self, running: Running, account_id: str, console: Console) -> None:
        self.figures: dict[str, Any] = {}
        self._running = running
        self._account_id = account_id
        self._console = console
        self._told = running.dependencies.log.head()
        self._seen: Snapshot = {}

    @contextmanager
    def scene(self, title: str, text: str = "") -> Iterator[None]:
        """Tell what is about to happen, then what events it appended and which rows it changed."""
        self._console.print()
        self._console.rule(Text(title, style="bold"), align="left", style="dim")
        if text:
            self.say(text)
        yield
        self._tell_events()
        self._tell_rows()

    def say(self, text: str, **figures: Any) -> None:  # noqa: ANN401 - figures are numbers, dates and texts
        """A paragraph. ``figures`` are those that it claims, by name."""
        self.figures.update(figures)
        self._console.print(text, highlight=False)

    def refused(self, sentence: str) -> None:
        """What was refused, in the refusal's own words."""
        self._console.print(Text.assemble(("refused: ", "bold red"), sentence))

    def quote(self, lines: str) -> None:
        """Something that somebody received, word for word."""
        self._console.print(Padding(Text(lines, style="cyan"), (0, 4)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; a column of numbers is set right."""
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
            StoryBroken: it did not come in time.
        """
        log, after = self._running.dependencies.log, self._told
        while True:
            for recorded in log.read(after, limit=100):
                if happened(recorded):
                    return recorded
                after = recorded.position
            if not log.wait(after, WAIT_S):
                raise StoryBroken("An event that the story tells of did not come in time; see the servers' logs.")

    def _tell_events(self) -> None:
        for recorded in self._running.dependencies.log.read(self._told, limit=1000):
            self._console.print(
                Text.assemble(
                    (f"  {recorded.position:>4} ", "dim"),
                    (f"{type(recorded.event).__name__:<24}", "green"),
                    (f" {recorded.stream} v{recorded.version}  by {recorded.cause.actor}", "dim"),
                ),
                no_wrap=True,
                overflow="ellipsis",
            )
            self._told = recorded.position

    def _tell_rows(self) -> None:
        with connect(self._running.database_url) as conn:
            if not wait(conn, self._told, WAIT_S):
                raise StoryBroken("The read models did not become current in time; see the servers' logs.")
            now: Snapshot = {
                (table.TABLE, row.key()): vars(row)
                for table in TABLES
                for row in stored(conn, table, account_id=self._account_id)
            }
        for (table_name, key), row in now.items():
            before = self._seen.get((table_name, key), {})
            changed = [f"{c} {_short(before.get(c))} -> {_short(row[c])}" for c in row if row[c] != before.get(c)]
            if before and changed:
                self._tell_row(table_name, key, ", ".join(changed))
            elif not before:
                told = [f"{c} {_short(row[c])}" for c in row if _telling(c, row[c], key)]
                self._tell_row(table_name, key, f"new, {', '.join(told)}")
        for table_name, key in self._seen.keys() - now.keys():
            self._tell_row(table_name, key, "row gone")
        self._seen = now

    def _tell_row(self, table_name: str, key: tuple[object, ...], change: str) -> None:
        name = " ".join(map(str, key))
        self._console.print(
            Text.assemble(("       ", ""), (f"read.{table_name}", "blue"), (f" {name}: {change}", "dim")),
            no_wrap=True,
            overflow="ellipsis",
        )


def _telling(column: str, value: object, key: tuple[object, ...]) -> bool:
    """Whether a column of a new row tells a reader anything."""
    return value is not None and value not in key and not column.endswith("_id") and not isinstance(value, dict | list)


def _short(value: object) -> str:
    return "-" if value is None else f"{value:%Y-%m-%d %H:%M}" if hasattr(value, "hour") else str(value)
