"""Customers before mails: grants and invoices are not held up by mails, however many of both are due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

from handlers.reactions import Reaction

MAIL_THROTTLE_THRESHOLD = 2
"""While at least so many grants and invoices are in progress, mails are sent one at a time."""

MAIL_WAIT_MAX_S = 5.0


class Precedence:
    """Throttles mails while customers wait for grants and invoices.

    No mail waits longer than `MAIL_WAIT_MAX_S`: a mail server that hangs delays one mail, not all of them.
    """

    def __init__(self) -> None:
        self._in_progress = 0
        self._one_mail = asyncio.Lock()

    @asynccontextmanager
    async def of(self, reaction: Reaction) -> AsyncIterator[None]:
        """Run a reaction inside this context."""
        if reaction.mails:
            async with self._one_at_a_time() if self._in_progress >= MAIL_THROTTLE_THRESHOLD else nullcontext():
                yield
        else:
            self._in_progress += 1
            try:
                yield
            finally:
                self._in_progress -= 1

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        acquired = False
        with suppress(TimeoutError):
            async with asyncio.timeout(MAIL_WAIT_MAX_S):
                acquired = await self._one_mail.acquire()
        try:
            yield
        finally:
            if acquired:
                self._one_mail.release()
