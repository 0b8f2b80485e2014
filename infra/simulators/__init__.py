"""Simulated outside parties that speak the real protocol on a socket: payment provider, mail server."""
