"""The log of events: read, appended to in groups, cached, and snapshotted."""
