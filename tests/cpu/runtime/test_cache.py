"""The runtime cache's file: read for the plan it was written for, whole, or not at all."""

from __future__ import annotations

import pytest

from svdq_trt.runtime.cache import RuntimeCache
from tests.harness.fake_engine import RuntimeConfig


def reopened(path, plan):
    config = RuntimeConfig()
    return RuntimeCache(config, path, plan).hit, config.given


def test_what_is_saved_is_read_for_the_same_plan_alone(tmp_path):
    path = tmp_path / "runtime-cache.bin"
    assert reopened(path, "plan a") == (False, None)
    RuntimeCache(RuntimeConfig(), path, "plan a").save()
    assert reopened(path, "plan a") == (True, b"kernels")
    assert reopened(path, "plan b") == (False, None)  # the engine was built again
    RuntimeCache(RuntimeConfig(), path, "plan b").save()
    assert reopened(path, "plan b") == (True, b"kernels")


@pytest.mark.parametrize("harm", [lambda b: b[:-1], lambda b: b[:33] + b"?" + b[34:], lambda b: b[:20], lambda b: b""])
def test_a_damaged_file_reaches_tensorrt_not(tmp_path, harm):
    path = tmp_path / "runtime-cache.bin"
    RuntimeCache(RuntimeConfig(), path, "plan").save()
    path.write_bytes(harm(path.read_bytes()))
    assert reopened(path, "plan") == (False, None)
