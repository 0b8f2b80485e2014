"""The request for past events, and the headers of its answer."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

HISTORY_PAGE_MAX: Final = 1000
END_HEADER: Final = "Trunkline-History"
"""In the message that ends a page: ``more``, ``end``, ``refused``, or ``failed`` (ask again)."""
NEXT_HEADER: Final = "Trunkline-Position"
"""In the last message of a page, the position to continue after; in the message of an event, its position."""


class HistoryRequest(BaseModel):
    """Request the events after a position, in order, as they were published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: Annotated[int, Field(ge=0)] = Field(description="The last position that the sender has; 0 for none.")
    limit: Annotated[int, Field(ge=1, le=HISTORY_PAGE_MAX)] = Field(
        HISTORY_PAGE_MAX, description="The number of positions to read; at most as many events are returned."
    )
    time: AwareDatetime = Field(description="When it was sent; a request is refused after five minutes.")
