"""Recognizing exceptions that mean that memory has run out: every library has its own."""

from __future__ import annotations

import errno
import os

from svdq_trt.base.errors import SvdqError

#: the system's words, which torch's CPU allocator quotes; ONNX Runtime's; C++'s
_RAM = (os.strerror(errno.ENOMEM), "Failed to allocate memory", "std::bad_alloc")
_GPU = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # the second comes from cuBLAS, cuSOLVER and cuDNN


def out_of_memory(where: str, error: BaseException, otherwise: str = "") -> SvdqError | None:
    """The user error for an `error` that means lack of memory; None for any other.

    Args:
        where: what was being done. otherwise: how less of the machine's memory would do, as ``use --no-check``.
    """
    text = str(error)
    # by its name: most stages run without torch
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _GPU):
        return SvdqError(
            where,
            "out of GPU memory",
            "a GPU with more that is free",
            "Close other programs on it, or use --device cpu.",
        )
    if isinstance(error, MemoryError) or any(words in text for words in _RAM):
        fix = "Close other programs" + (f", or {otherwise}" if otherwise else "")
        return SvdqError(where, "out of memory", "more RAM", f"{fix}.")
    return None
