"""One run of the demo, shared by several tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Showing:
    """Its output, its result, and the database that it left."""

    told: str
    end: dict[str, Any]
    database_url: str

    @property
    def figures(self) -> dict[str, Any]:
        """Every figure that it reported."""
        figures: dict[str, Any] = self.end["figures"]
        return figures
