"""This machine's GPUs, asked of the CUDA driver: importing a library that knows them takes seconds."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from svdq_trt.base.errors import SvdqError, UnsupportedError

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_MAJOR, _MINOR = 75, 76


def local_arch(index: int = 0) -> int | None:
    """Compute capability of a CUDA device (90 for sm_90), or None without a driver or that GPU."""
    try:
        cuda, device = _driver(), _device(index)
    except UnsupportedError:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) or cuda.cuDeviceGetAttribute(
        ctypes.byref(minor), _MINOR, device
    ):
        return None
    return major.value * 10 + minor.value


def gpu_name(index: int) -> str:
    """The name of a CUDA device, as "NVIDIA H200". Raises UnsupportedError: there is none of that index."""
    text = ctypes.create_string_buffer(256)
    _call("cuDeviceGetName", text, len(text), _device(index))
    return text.value.decode(errors="replace")


@contextmanager
def on_gpu(index: int) -> Iterator[None]:
    """Make a CUDA device this thread's current one, for libraries that ask CUDA which it is.

    Raises:
        UnsupportedError: there is none of that index. SvdqError: the driver refuses, as where no memory is left.
    """
    _call("cuCtxPushCurrent_v2", _context(index))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def used_bytes(index: int) -> int:
    """GPU memory of a CUDA device that is in use, by all processes. Raises as `on_gpu`."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with on_gpu(index):
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


@functools.cache
def _context(index: int) -> ctypes.c_void_p:
    """The device's primary context, which all libraries share. It is never let go: what is in it would go with it."""
    context = ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), _device(index))
    return context


def _device(index: int) -> ctypes.c_int:
    """The driver's handle. Raises UnsupportedError: no driver, or no GPU of that index."""
    cuda, device = _driver(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
        raise _none(index)
    return device


@functools.cache
def _driver() -> ctypes.CDLL:
    """The driver's library. Raises UnsupportedError: there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _none(0) from None


def _none(index: int) -> UnsupportedError:
    return UnsupportedError(f"CUDA device {index}", "not found", "an NVIDIA GPU and its driver")


def _call(function: str, *arguments: Any) -> None:
    if code := getattr(_driver(), function)(*arguments):
        raise SvdqError(function, f"CUDA error {code}", "success")
