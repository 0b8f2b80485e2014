"""The business rules: pure functions over commands and events. No clock, no I/O; libraries: pydantic and rpds."""
