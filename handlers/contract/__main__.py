"""``python -m handlers.contract``: write the contract to docs/asyncapi.yaml, unless that would be a breaking change.

``--check FILE`` compares with an older one and writes nothing; ``--breaking`` writes it anyway, for a new version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from handlers.contract.asyncapi import document
from handlers.contract.changes import breaking_changes
from handlers.contract.page import as_yaml

COMMITTED = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"


def write(
    check: Annotated[Path | None, typer.Option(help="Compare with this file, and write nothing.")] = None,
    breaking: Annotated[bool, typer.Option(help="Write it despite breaking changes.")] = False,
) -> None:
    """Write the contract to docs/asyncapi.yaml."""
    older = check or COMMITTED
    contract = document()
    changes = breaking_changes(yaml.safe_load(older.read_text(encoding="utf-8")), contract) if older.exists() else []
    for change in changes:
        sys.stderr.write(f"breaking: {change}\n")
    if changes and not breaking:
        sys.stderr.write(
            "These changes break services that use the contract; add fields or messages instead, or make a v2.\n"
        )
        raise typer.Exit(1)
    if check is None:
        COMMITTED.write_text(as_yaml(contract), encoding="utf-8")


if __name__ == "__main__":
    typer.run(write)
