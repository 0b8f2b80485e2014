"""What leaves the house of an event: a CloudEvent 1.0 that says that it happened, and where in the log it stands.

It carries no data. Stored events are ours alone, and hold what not everybody may see; whoever may, asks for it by
position.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from infra.pydantic_mapper import Recorded

TYPE_PREFIX = "trunkline."


class CloudEvent(BaseModel):
    """The attributes of CloudEvents 1.0, with the extensions ``partitionkey`` (the account) and our own three."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: Literal["urn:trunkline:log"] = "urn:trunkline:log"
    type: str
    subject: str
    time: AwareDatetime
    partitionkey: str | None
    position: int
    correlationid: str
    causationid: str | None


def cloud_event(recorded: Recorded) -> CloudEvent:
    """The message of an event."""
    return CloudEvent(
        id=str(recorded.event_id),
        type=f"{TYPE_PREFIX}{recorded.event.TOPIC}",
        subject=recorded.stream,
        time=recorded.recorded_at,
        partitionkey=recorded.account_id,
        position=recorded.position,
        correlationid=recorded.cause.correlation_id,
        causationid=recorded.cause.causation_id,
    )
