"""What is decided: pure rules over commands and events; no clock, no input or output; libraries: pydantic and rpds."""
