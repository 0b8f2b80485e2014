"""What is decided: pure rules over commands and events. No clock, no input or output, no library but pydantic."""
