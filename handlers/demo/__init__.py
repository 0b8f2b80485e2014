"""The demonstration: the whole purchase, from the first event to the last, on real servers.

What is not real says so: the payment provider is a simulator, mail goes to a catcher, and the clock is shifted, so that
half a year passes in a second. Everything else - PostgreSQL, NATS, SMTP, HTTP, the PDF - is what runs in production.
"""
