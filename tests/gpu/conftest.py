"""GPU tests: they need a CUDA device and libsvdq.so.

A missing need is a visible skip, or a failure under SVDQ_REQUIRE=gpu.
"""

from __future__ import annotations

import os

import pytest
import svdq_harness


def _missing() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if svdq_harness.library_path() is None:
        return "libsvdq.so not found: build it, or set SVDQ_LIBRARY"
    return ""


@pytest.fixture(scope="session")
def svdq() -> svdq_harness.Library:
    """The loaded C API."""
    reason = _missing()
    if reason and "gpu" in os.environ.get("SVDQ_REQUIRE", "").split(","):
        pytest.fail(f"SVDQ_REQUIRE=gpu, but {reason}")
    if reason:
        pytest.skip(reason)
    return svdq_harness.Library()
