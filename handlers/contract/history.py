"""The request for past events, and what ends a page of them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

MOST_AT_ONCE: Final = 1000
END_HEADER: Final = "Trunkline-History"
"""In the message that ends a page: ``more``, ``end``, ``refused``, or ``failed``: ask again."""
NEXT_HEADER: Final = "Trunkline-Position"
"""There: the position to ask on from. In the messages of events: that of the event."""


class HistoryRequest(BaseModel):
    """Ask for the events behind a position, in their order, as they went over the stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: Annotated[int, Field(ge=0)] = Field(description="The last position that is known already; 0 for none.")
    limit: Annotated[int, Field(ge=1, le=MOST_AT_ONCE)] = Field(
        MOST_AT_ONCE, description="How many positions to look at; as many events come at most."
    )
    time: AwareDatetime = Field(description="When it was sent; a request is answered within five minutes of that.")
