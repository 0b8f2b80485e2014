"""One showing of the demonstration, which several tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Showing:
    """What it told, what it gave at its end, and the database that it left."""

    told: str
    end: dict[str, Any]
    database_url: str

    @property
    def figures(self) -> dict[str, Any]:
        """Every figure that it claimed."""
        figures: dict[str, Any] = self.end["figures"]
        return figures
