"""Prometheus counters and histograms of this process. No label holds an id."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

COMMANDS = Counter("trunkline_commands", "Commands received as messages, by outcome.", ["command", "outcome"])
RETRIES = Counter("trunkline_retries", "Failed deliveries that are retried.", ["consumer"])
DEAD_LETTERS = Counter("trunkline_dead_letters_buried", "Messages moved to the dead letters.", ["consumer"])
RELAYED = Counter("trunkline_relayed_events", "Events published by the relay of this process and acknowledged.")
APPENDS = Counter("trunkline_appends", "Appends to the log by this process.")
APPENDED = Counter("trunkline_appended_events", "Events appended to the log by this process.")
GROUP = Histogram("trunkline_group_size", "Appends that shared one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
