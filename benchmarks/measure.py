"""Benchmark results: medians of ours and of a baseline, and their ratio, round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


class Void(Exception):
    """A correctness check failed, so the figures are meaningless."""


@dataclass(frozen=True)
class Measure:
    """Medians in ``unit``; the median ratio ours / baseline, with its range over the rounds.

    An absolute figure has no baseline; its ratio, range, floor and aim are in ``unit``.
    """

    ours: float
    baseline: float | None
    unit: str
    ratio: float
    range: tuple[float, float]
    floor: float
    aim: float


def in_turn(  # noqa: PLR0913 - passed by name
    rounds: int,
    ours: Callable[[], float],
    baseline: Callable[[], float],
    done: Callable[[], object],
    *,
    floor: float,
    aim: float,
    unit: str = "1/s",
    smaller_is_better: bool = False,
) -> Measure:
    """Measure both alternately, ``rounds`` times, each in ``unit``; ``done`` is called after each round.

    The ratio is how many times better ours is: ours / baseline, or the inverse if smaller is better.
    """
    pairs = []
    for number in range(rounds):
        # Alternate the order, so that neither always finds the caches that the other left.
        if number % 2:
            theirs = baseline()
            pairs.append((ours(), theirs))
        else:
            pairs.append((ours(), baseline()))
        done()
    ratios = [theirs / mine if smaller_is_better else mine / theirs for mine, theirs in pairs]
    return Measure(
        ours=median(mine for mine, _ in pairs),
        baseline=median(theirs for _, theirs in pairs),
        unit=unit,
        ratio=median(ratios),
        range=(min(ratios), max(ratios)),
        floor=floor,
        aim=aim,
    )


def absolute(figures: Sequence[float], unit: str, *, floor: float, aim: float) -> Measure:
    """An absolute figure, measured in several rounds."""
    middle = median(figures)
    return Measure(middle, None, unit, middle, (min(figures), max(figures)), floor, aim)
