"""The command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handlers.cli.app import main

Run = Callable[..., tuple[int, str, str]]
"""Runs ``trunkline`` with arguments. Gives exit status, output and errors."""


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs it."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["trunkline", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run
