"""What we lean on: the event log, the database, the broker, the payment provider, mail, documents, settings."""
