"""The services that rules know by name. What else is sold, and for how much, is data: see `domain.price_list`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

ServiceCode = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""The code of a service, as price lists name it."""

EXTENSIONS = "extensions"
"""The size of a hosting package."""

ULTIMATE_PLAN = "ultimate_plan"
"""Extensions of the package that are on the Ultimate Plan: a carve-out of `EXTENSIONS`, never added to them."""

RECORDING_MINUTES = "recording_minutes"
HIGH_AVAILABILITY = "high_availability"

FREE_RECORDING_MINUTES_PER_PBX = 500
"""Only what is assigned beyond these draws on the package's pool."""


class Plan(StrEnum):
    """The plan of a PBX; all its extensions are on it."""

    ENTERPRISE = "enterprise"
    ULTIMATE = "ultimate"


class Pricing(StrEnum):
    """How a service is sold: by quantity, or on and off."""

    QUANTITY = "quantity"
    FLAT = "flat"
