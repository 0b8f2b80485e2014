"""The envelope of our messages: CloudEvents 1.0 in JSON. For the content of ``data`` see `handlers.contract`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

CONTENT_TYPE = "application/cloudevents+json"

Position = Annotated[int, Field(ge=1), PlainSerializer(str, return_type=str)]
"""A log position. On the wire it is a string of digits, because a CloudEvents Integer ends at 2^31 - 1."""


class CloudEvent(BaseModel):
    """The attributes of CloudEvents 1.0, the extension ``partitionkey`` (the account), and three of our own."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = Field("1.0", description="The version of CloudEvents.")
    id: str = Field(description="The event's id, which stays the same in every delivery.")
    source: Literal["urn:trunkline:log"] = Field("urn:trunkline:log", description="The origin of the event.")
    type: str = Field(description="What happened; the same as the subject in NATS.")
    subject: str = Field(description="The aggregate's stream.")
    time: AwareDatetime = Field(description="When it was recorded.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="The format of data.")
    partitionkey: str | None = Field(
        None, description="The account; absent if the event belongs to none. Events of one account arrive in order."
    )
    position: Position = Field(description="The position in the log: from 1, without gaps, in commit order.")
    correlationid: str = Field(description="Shared by everything that follows from one request.")
    causationid: str | None = Field(None, description="The event or message that directly caused this one.")
    data: Any = Field(description="The content, as the type defines it.")
