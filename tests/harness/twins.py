"""Twins as parameters of tests that take a while for each: all, of which a run without SVDQ_ALL=1 takes a few."""

from __future__ import annotations

import pytest

from svdq_trt.models import BUILT_TWINS, TWINS
from tests.harness.builds import some_minutes

PARAMS = [name if name in BUILT_TWINS else pytest.param(name, marks=some_minutes) for name in TWINS]
