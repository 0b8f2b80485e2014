"""Hypothesis settings: no deadline on a loaded machine, and the same examples on every CI run."""

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
