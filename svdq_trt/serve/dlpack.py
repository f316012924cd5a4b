"""numpy arrays as tensors of Triton's Python backend, and back, by DLPack.

Conversions of the backend's own, to and from numpy, were in some releases compiled for numpy 1: with numpy 2 they
silently make tensors of zero bytes. DLPack is the same in all of them, but for two things that are mended here without
torch, which a server need not have:

- The backend calls a capsule that it took "used_dlpack", where the protocol says "used_dltensor". To numpy 2 such a
  capsule is a broken one, and every response writes a traceback into the server's log.
- numpy has no bfloat16. Its bits pass as uint16, and the word for their type is changed inside the capsule.

https://dmlc.github.io/dlpack/latest/python_spec.html; FromDLPackCapsule in python_backend's src/pb_tensor.cc.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

_NEW, _USED, _TRITONS_USED = b"dltensor", b"used_dltensor", b"used_dlpack"  # capsules keep pointers to their names
_TYPE_CODE = 20  # byte of DLManagedTensor.dl_tensor.dtype.code: behind data (8), device (8), ndim (4)
_UINT, _BFLOAT = 1, 4  # DLDataTypeCode

_api = ctypes.pythonapi
_api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p


class _Exporter:
    """What ``np.from_dlpack`` takes: a capsule of host memory."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU


def from_triton(tensor: Any) -> np.ndarray:
    """The array of a ``pb.Tensor`` in host memory, which it shares."""
    capsule = tensor.to_dlpack()
    code = _type_code(capsule)
    if code.value != _BFLOAT:
        return np.from_dlpack(_Exporter(capsule))
    code.value = _UINT
    return np.from_dlpack(_Exporter(capsule)).view(ml_dtypes.bfloat16)


def to_triton(kind: Any, name: str, value: np.ndarray) -> Any:
    """A tensor named `name` that shares the array's memory; `kind` is the backend's class ``pb.Tensor``."""
    value = np.require(value, requirements=("C", "W"))  # DLPack has no word for read-only
    if value.dtype == ml_dtypes.bfloat16:
        capsule = value.view(np.uint16).__dlpack__()
        _type_code(capsule).value = _BFLOAT
    else:
        capsule = value.__dlpack__()
    tensor = kind.from_dlpack(name, capsule)
    if _api.PyCapsule_IsValid(capsule, _TRITONS_USED):
        _api.PyCapsule_SetName(capsule, _USED)
    return tensor


def _type_code(capsule: Any) -> ctypes.c_uint8:
    """The capsule's type code, to read and to change."""
    return ctypes.c_uint8.from_address(_api.PyCapsule_GetPointer(capsule, _NEW) + _TYPE_CODE)
