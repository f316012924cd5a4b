"""A model's inputs, and whether given tensors fit them: torch tensors or numpy arrays, without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import ml_dtypes
import numpy as np

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ShapeError

if TYPE_CHECKING:
    import torch

#: TensorRT's DataType by name -> numpy's name, which is torch's too
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def trt_dtype_name(trt_dtype: Any) -> str:
    """Numpy's name of TensorRT's dtype: ``float16`` for DataType.HALF."""
    return _DTYPES[trt_dtype.name]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name; ``bfloat16`` is ml_dtypes' type."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def input_names(trt: Any, engine: Any) -> list[str]:
    """Names of the engine's inputs, in its order."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]


def input_profiles(trt: Any, engine: Any, filled: Container[str] = ()) -> list[TensorProfile]:
    """The engine's inputs with their ranges in optimization profile 0, without those that the session fills."""
    return [
        TensorProfile(
            n,
            trt_dtype_name(engine.get_tensor_dtype(n)),
            *(tuple(shape) for shape in engine.get_tensor_profile_shape(n, 0)),
        )
        for n in input_names(trt, engine)
        if n not in filled
    ]


def output_names(trt: Any, engine: Any) -> list[str]:
    """Names of the engine's outputs, in its order."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a torch tensor; False for everything in a process that has not imported torch."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def dtype_name(value: torch.Tensor | np.ndarray) -> str:
    """Numpy's name of the dtype of a tensor or an array, such as ``float16``."""
    return str(value.dtype).removeprefix("torch.")


def as_tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A torch tensor that shares the array's memory; ml_dtypes' bfloat16, which torch does not know, by its bits."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    value = np.asarray(value, order="C")  # ascontiguousarray would turn a scalar into a vector
    if not value.flags.writeable:  # torch warns about read-only arrays
        value = value.copy()
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """A numpy array on the host; bfloat16 as ml_dtypes' type. Shares the memory of a CPU tensor or an array."""
    if not is_tensor(value):
        return np.asarray(value)
    import torch

    host = value.detach().cpu()
    if host.dtype == torch.bfloat16:
        return host.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()


def check_inputs(profiles: Sequence[TensorProfile], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values by name, in the engine's order; any other value becomes an array.

    Raises:
        ShapeError: an input missing or unknown, of another dtype, or outside the profile.
    """
    names = [p.name for p in profiles]
    for name in (*(n for n in names if n not in given), *(n for n in given if n not in names)):
        got = "missing" if name in names else "no input of this engine"
        raise ShapeError(f"input '{name}'", got, ", ".join(names))
    checked = {}
    for profile in profiles:
        value, where = given[profile.name], f"input '{profile.name}'"
        value = value if is_tensor(value) else np.asarray(value)
        if dtype_name(value) != profile.dtype:
            raise ShapeError(where, dtype_name(value), profile.dtype, "Convert it before the call.")
        shape = tuple(value.shape)
        fits = len(shape) == len(profile.min) and all(
            low <= size <= high for low, size, high in zip(profile.min, shape, profile.max, strict=True)
        )
        if not fits:
            raise ShapeError(
                where,
                f"shape {list(shape)}",
                describe(profile),
                "Build the engine with a wider --batch, --height or --width.",
            )
        checked[profile.name] = value
    return checked


def describe(profile: TensorProfile) -> str:
    """The range as text, ``[1..4, 4, 64..192, 64..192]``; a bound beyond int32 means no bound."""
    dims = (
        str(low) if low == high else f"{low}.." + (str(high) if high < 2**31 - 1 else "")
        for low, high in zip(profile.min, profile.max, strict=True)
    )
    return f"[{', '.join(dims)}]"
