"""``python -m benchmarks.growth FILE.svg``: the cost of an append while the log grows to ten million events.

``log.append`` itself fills the log, a hundred streams of a hundred events at a time, without waiting for the disk; the
samples in between wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psycopg
import pygal  # type: ignore[import-untyped]
import typer
from psycopg import Connection
from pygal.style import CleanStyle  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import Progress

from benchmarks.log import ALONE, AT, CAUSE, OURS_EACH, STATE, TOPIC, appends_of, p99_ms, rate
from infra.event_log.append import Append, appended
from infra.event_log.postgres_recorder import PostgresRecorder
from infra.event_log.recorder import LogRow
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory

STREAMS = 100
VERSIONS = 100
SAMPLES = 5


@dataclass(frozen=True)
class Sample:
    """The cost of appends at a length of the log: medians of `SAMPLES`."""

    millions: float
    alone_us: float
    among_64_us: float
    p99_ms: float


def grow(millions: int, steps: int, done: Callable[[int, int], object]) -> list[Sample]:
    """Fill a log step by step and sample at each. ``done`` is called with the events so far and the final number."""
    most = millions * 1_000_000
    with temporary_directory() as directory, embedded_postgres(directory) as owner_url:
        database_url = program_login(owner_url)
        migrate(owner_url)
        admit(owner_url, database_url)
        with psycopg.connect(owner_url, autocommit=True) as owner, PostgresRecorder(database_url) as recorder:
            owner.execute("SET synchronous_commit = off")
            streams = count(1)
            samples = [_sample(recorder)]
            for step in range(1, steps + 1):
                while (head := recorder.max_notification_id() or 0) < most * step // steps:
                    _fill(owner, streams)
                    done(head, most)
                samples.append(_sample(recorder))
            return samples


def _fill(owner: Connection[Any], streams: count[int]) -> None:
    group = [
        Append(
            [
                LogRow(stream, version, TOPIC, STATE, 0, AT, stream, CAUSE.correlation_id, None, CAUSE.actor)
                for version in range(1, VERSIONS + 1)
            ]
        )
        for stream in (f"allocation-{next(streams)}" for _ in range(STREAMS))
    ]
    appended(owner, group)


def _sample(recorder: PostgresRecorder) -> Sample:
    alone, among, p99 = [], [], []
    for _ in range(SAMPLES):
        alone.append(1e6 / rate(appends_of(recorder, ALONE, 1)))
        among.append(1e6 / rate(appends_of(recorder, OURS_EACH)))
        p99.append(p99_ms(appends_of(recorder, OURS_EACH)))
    length = (recorder.max_notification_id() or 0) / 1e6
    return Sample(length, median(alone), median(among), median(p99))


def draw(samples: list[Sample], file: Path) -> None:
    """Draw the curve."""
    chart = pygal.XY(
        title="What an append costs while the log grows",
        x_title="events in the log, millions",
        y_title="microseconds an append, waiting for the disk",
        style=CleanStyle,
        range=(0, 1.25 * max(sample.alone_us for sample in samples)),
        legend_at_bottom=True,
        width=900,
        height=420,
        js=(),
        disable_xml_declaration=True,
    )
    chart.add("one writer", [(sample.millions, sample.alone_us) for sample in samples])
    chart.add("64 writers", [(sample.millions, sample.among_64_us) for sample in samples])
    file.write_text(chart.render(), encoding="utf-8")


def main(
    file: Path,
    millions: Annotated[int, typer.Option(min=1, help="The final length of the log.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="The number of samples on the way.")] = 10,
) -> None:
    """Grow a log and draw the cost of appends."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("filling the log", total=None)
        samples = grow(millions, steps, lambda head, most: progress.update(task, completed=head, total=most))
    draw(samples, file)
    for s in samples:
        print(
            f"{s.millions:6.2f} M: {s.alone_us:6.0f} us alone, {s.among_64_us:5.0f} us among 64, p99 {s.p99_ms:.1f} ms"
        )


if __name__ == "__main__":
    typer.run(main)
