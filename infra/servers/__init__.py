"""Servers that run in or below this process: PostgreSQL, NATS, HTTP."""
