"""What the CUDA driver is asked, with a driver that records it."""

from __future__ import annotations

import ctypes

import pytest

from svdq_trt.base.errors import SvdqError, UnsupportedError
from svdq_trt.engine import gpu


class Driver:
    """One GPU of compute capability 9.0; `refused` is a function that fails, `calls` are those since the start."""

    def __init__(self):
        self.calls, self.refused = [], ""

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == self.refused:
                return 2
            if name == "cuDeviceGet":
                return 101 if arguments[1] else 0
            if name == "cuDeviceGetName":
                arguments[0].value = b"a GPU"
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 3000, 10_000
            return 0

        return call


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    for cached in (gpu._driver, gpu._context):
        cached.cache_clear()
    yield found
    for cached in (gpu._driver, gpu._context):
        cached.cache_clear()


def test_a_gpu_is_described(driver):
    assert (gpu.local_arch(), gpu.gpu_name(0), gpu.used_bytes(0)) == (90, "a GPU", 7000)
    assert gpu.local_arch(1) is None
    with pytest.raises(UnsupportedError, match=r"^CUDA device 1: not found, want an NVIDIA GPU and its driver"):
        gpu.gpu_name(1)


def test_a_gpu_is_current_inside_and_its_context_is_kept(driver):
    with pytest.raises(KeyError), gpu.on_gpu(0):
        raise KeyError
    with gpu.on_gpu(0):
        pass
    assert [name for name in driver.calls if "Ctx" in name] == [
        "cuDevicePrimaryCtxRetain",
        *["cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"] * 2,
    ]


def test_what_the_driver_refuses_is_said(driver):
    driver.refused = "cuDevicePrimaryCtxRetain"
    with pytest.raises(SvdqError, match=r"^cuDevicePrimaryCtxRetain: CUDA error 2, want success"), gpu.on_gpu(0):
        pytest.fail("ran")
    assert "cuCtxPopCurrent_v2" not in driver.calls


def test_without_a_driver_there_is_no_gpu(driver, monkeypatch):
    def none(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert gpu.local_arch() is None
    with pytest.raises(UnsupportedError, match=r"^CUDA device 0: not found"), gpu.on_gpu(0):
        pytest.fail("ran")
