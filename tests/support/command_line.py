"""The command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handlers.cli.app import main

Run = Callable[..., tuple[int, str, str]]
"""Runs ``trunkline`` with arguments. Returns exit status, stdout and stderr."""


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["trunkline", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run
