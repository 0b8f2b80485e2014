"""Simulators of external services that speak the real protocol on a socket: payment provider, mail server."""
