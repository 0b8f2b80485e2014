"""Text is printed unchanged, whatever it contains."""

from __future__ import annotations

import pytest
from rich.table import Table

from handlers.cli.console import PIPE_WIDTH, console, say

WRITTEN = "[/red] Wonka [bold]& Sons[/bold] :bell: [erased]"


def test_user_text_is_not_interpreted_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    say(WRITTEN)
    table = Table()
    table.add_column("name")
    table.add_row(WRITTEN)
    console().print(table)
    said, *drawn = capsys.readouterr().out.splitlines()
    assert said == WRITTEN
    assert any(WRITTEN in line for line in drawn)


def test_a_sentence_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * PIPE_WIDTH
    say(long)
    assert capsys.readouterr().out == f"{long}\n"
