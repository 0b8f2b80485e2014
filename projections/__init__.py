"""What is seen: read models, each folded from the log and made anew from it at any time."""
