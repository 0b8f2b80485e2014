"""Figures that this process counts: Prometheus' counters and histograms. No label holds an id."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

COMMANDS = Counter("trunkline_commands", "Commands that came as messages, by outcome.", ["command", "outcome"])
RETRIES = Counter("trunkline_retries", "Deliveries that failed and are tried again.", ["consumer"])
DEAD_LETTERS = Counter("trunkline_dead_letters_buried", "Messages that went to the dead letters.", ["consumer"])
RELAYED = Counter("trunkline_relayed_events", "Events that the relay of this process had acknowledged.")
APPENDS = Counter("trunkline_appends", "Commits to the log by this process that added events.")
APPENDED = Counter("trunkline_appended_events", "Events that this process added to the log.")
GROUP = Histogram(
    "trunkline_group_size", "Units of work that met in one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
