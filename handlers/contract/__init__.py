"""What other services build on: messages out and in, with schemas of their own, apart from what is stored."""
