"""``trunkline find``: questions over all accounts."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Questions over all accounts.")


@app.callback()
def find() -> None:
    """Questions over all accounts."""
