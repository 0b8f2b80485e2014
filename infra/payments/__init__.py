"""The payment provider: the protocol that handlers use, and PayPal."""
