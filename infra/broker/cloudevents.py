"""The envelope of our messages: CloudEvents 1.0 in JSON. What is in ``data`` is a contract: see `handlers.contract`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

CONTENT_TYPE = "application/cloudevents+json"

Position = Annotated[int, Field(ge=1), PlainSerializer(str, return_type=str)]
"""A position of the log. On the wire it is a string of digits: an Integer of CloudEvents ends at 2^31 - 1."""


class CloudEvent(BaseModel):
    """The attributes of CloudEvents 1.0, with the extension ``partitionkey`` (the account), and three of our own."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = Field("1.0", description="The version of CloudEvents.")
    id: str = Field(description="The event's own id: the same wherever and whenever this event is met.")
    source: Literal["urn:trunkline:log"] = Field("urn:trunkline:log", description="Whose event it is.")
    type: str = Field(description="What happened; the same as the subject in NATS.")
    subject: str = Field(description="The stream of the aggregate that it happened to.")
    time: AwareDatetime = Field(description="When it was recorded.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="How data is written.")
    partitionkey: str | None = Field(
        None, description="The account. Events of one account are in order; those of no account have none."
    )
    position: Position = Field(description="The place in the log: from 1, without a gap, in the order of commits.")
    correlationid: str = Field(description="The same for all that follows from one wish.")
    causationid: str | None = Field(None, description="The event, or the message, that led to this one directly.")
    data: Any = Field(description="What the type says.")
