"""Personal data: encryption, one key per person, and the master keys that wrap them."""
