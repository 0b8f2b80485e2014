"""The entry point of the program ``trunkline``.

The garbage collector is off while the program is loaded: it would take a fifth of that time.
"""

from __future__ import annotations

import gc
import sys

from handlers.cli.interpreter import INTERRUPTED, freeze_loaded_objects


def start() -> None:
    """Load the command line and run it."""
    gc.disable()
    try:
        from handlers.cli.app import main  # noqa: PLC0415 - loaded with the garbage collector off
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    freeze_loaded_objects()
    gc.enable()
    main()
