"""The services that rules refer to by name. Other services and all prices are data: see `domain.price_list`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

ServiceCode = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""The code of a service in price lists."""

EXTENSIONS = "extensions"
"""The size of a hosting package."""

ULTIMATE_PLAN = "ultimate_plan"
"""Extensions of the package on the Ultimate Plan: a carve-out of `EXTENSIONS`, never added to them."""

RECORDING_MINUTES = "recording_minutes"
HIGH_AVAILABILITY = "high_availability"

FREE_RECORDING_MINUTES_PER_PBX = 500
"""Only minutes beyond these draw on the package's pool."""


class Plan(StrEnum):
    """The plan of a PBX and of all its extensions."""

    ENTERPRISE = "enterprise"
    ULTIMATE = "ultimate"


class Pricing(StrEnum):
    """How a service is sold: by quantity, or at a flat price."""

    QUANTITY = "quantity"
    FLAT = "flat"
