"""Where the program ``trunkline`` begins, and how little the garbage collector does in it.

It rests while the program is loaded, which is a fifth of that time.
"""

from __future__ import annotations

import gc
import sys

INTERRUPTED = 130
COLLECT_AFTER = 20_000
"""So many objects more than before; Python's own number is 700. A replay takes a tenth less of time."""


def start() -> None:
    """Load the command line, and run it."""
    gc.disable()
    try:
        from handlers.cli.app import main  # noqa: PLC0415 - not before that
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    settled()
    gc.enable()
    main()


def settled() -> None:
    """Keep what was loaded so far out of the garbage collector: it would hold up everything to look through it.

    Of what comes it has little to find: an event, and a row, is no part of a circle. So it looks less often, too.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
