"""Commands, reactions, and history on the broker."""
