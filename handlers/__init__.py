"""What comes in: commands, reactions, HTTP, messages, the command line - and the composition of it all."""
