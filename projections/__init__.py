"""Read models, each folded from the log, and rebuilt from it at any time."""
