"""How Hypothesis runs here: no haste on a loaded machine, the same examples every time in CI."""

import os

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.support.given_domain")

settings.register_profile(
    "trunkline",
    deadline=None,
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("trunkline")
