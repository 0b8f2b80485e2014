"""The event log against the library's stock recorder, and against ``COPY``, on one server with fsync on.

Both write to tables of the same database. After each round the whole log is checked: positions without a gap, every
append there once, and the chain unbroken; a stock recorder is only counted.
"""

from __future__ import annotations
