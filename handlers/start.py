"""Where the program ``trunkline`` begins. The garbage collector rests while it is loaded, which is a fifth of that."""

from __future__ import annotations

import gc


def start() -> None:
    """Load the command line, and run it."""
    gc.disable()
    from handlers.cli import main  # noqa: PLC0415 - not before that
    from handlers.processes import settled  # noqa: PLC0415

    settled()
    gc.enable()
    main()
