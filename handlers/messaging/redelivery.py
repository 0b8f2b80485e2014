"""What happens to a message that failed: redelivery after a growing delay, or the dead letters."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from json import JSONDecodeError

from nats.aio.msg import Msg
from pydantic import ValidationError

from infra.broker.dead_letters import Letter, letter_of
from infra.metrics import DEAD_LETTERS, RETRIES

DELIVERIES_MAX = 12
RETRY_DELAY_MAX_S = 60
logger = logging.getLogger(__name__)


class PermanentFailure(Exception):
    """A message failed for a reason that no redelivery can change."""


PERMANENT = (PermanentFailure, ValidationError, JSONDecodeError, UnicodeDecodeError)


def retry_delay_s(message: Msg, error: Exception) -> float | None:
    """Return the seconds until a failed message is to be redelivered, or None if it never is.

    The delay doubles with each delivery, up to `RETRY_DELAY_MAX_S`; jitter keeps messages that failed together apart.
    Permanent failures are not redelivered, and others at most `DELIVERIES_MAX` times.
    """
    delivery: int = message.metadata.num_delivered
    if isinstance(error, PERMANENT) or delivery >= DELIVERIES_MAX:
        return None
    RETRIES.labels(message.metadata.consumer).inc()
    logger.warning("delivery %s of %s failed: %s", delivery, message.subject, error)
    delay: float = min(RETRY_DELAY_MAX_S, 0.2 * 2**delivery)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret


async def bury(message: Msg, error: Exception, publish: Callable[[Letter], Awaitable[object]]) -> None:
    """Publish a message to the dead letters, together with its error."""
    logger.error("moved to the dead letters: %s: %s", message.subject, error)
    await publish(letter_of(message, error))
    DEAD_LETTERS.labels(message.metadata.consumer).inc()
