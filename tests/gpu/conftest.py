"""GPU tests: they need a CUDA device and libsvdq.so.

A missing need is a visible skip, or a failure under SVDQ_REQUIRE=gpu.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from kernel_calls import Library, find_library


@pytest.fixture(scope="session")
def svdq() -> Library:
    """The loaded C API."""
    path, reason = find_library(), ""
    if not torch.cuda.is_available():
        reason = "no CUDA device"
    elif path is None:
        reason = "libsvdq.so not found: build it, or set SVDQ_LIBRARY"
    if reason and "gpu" in os.environ.get("SVDQ_REQUIRE", "").split(","):
        pytest.fail(f"SVDQ_REQUIRE=gpu, but {reason}")
    if reason:
        pytest.skip(reason)
    return Library(path)


@pytest.fixture(scope="session")
def folder() -> Path:
    """The engine folder that SVDQ_TEST_ENGINE names; see test_session.py."""
    path = os.environ.get("SVDQ_TEST_ENGINE")
    if not path:
        pytest.skip("SVDQ_TEST_ENGINE names no engine folder")
    return Path(path)
