"""NATS: streams, the relay that publishes the log, message signatures, dead letters."""
