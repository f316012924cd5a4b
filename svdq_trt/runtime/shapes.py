"""What an engine takes, read from the engine itself, and whether given tensors fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from svdq_trt.engine.profile import TensorProfile
from svdq_trt.errors import ShapeError

#: TensorRT's DataType by name -> torch
_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32,
           "INT64": torch.int64, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def torch_dtype(trt_dtype: Any) -> torch.dtype:
    """TensorRT's DataType as torch's."""
    return _DTYPES[trt_dtype.name]


def input_profiles(trt: Any, engine: Any) -> list[TensorProfile]:
    """The engine's inputs with their ranges in optimization profile 0."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [
        TensorProfile(n, dtype_name(torch_dtype(engine.get_tensor_dtype(n))),
                      *(tuple(shape) for shape in engine.get_tensor_profile_shape(n, 0)))
        for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT
    ]  # fmt: skip


def output_names(trt: Any, engine: Any) -> list[str]:
    """The engine's outputs, in its order."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]


def dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def as_tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory; ml_dtypes' bfloat16, which torch does not know, by its bits."""
    if isinstance(value, torch.Tensor):
        return value
    value = np.asarray(value, order="C")  # ascontiguousarray would make a scalar a vector
    if not value.flags.writeable:  # torch warns of arrays it could write to by accident
        value = value.copy()
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def as_array(value: torch.Tensor) -> np.ndarray:
    """A copy on the host; bfloat16 as ml_dtypes' type."""
    host = value.cpu()
    if host.dtype == torch.bfloat16:
        import ml_dtypes

        return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()


def check_inputs(
    profiles: Sequence[TensorProfile], given: Mapping[str, torch.Tensor | np.ndarray]
) -> dict[str, torch.Tensor]:
    """Tensors by name, in the engine's order.

    Raises:
        ShapeError: an input missing or unknown, of another dtype, or outside the profile.
    """
    names = [p.name for p in profiles]
    for name in (*(n for n in names if n not in given), *(n for n in given if n not in names)):
        got = "missing" if name in names else "no input of this engine"
        raise ShapeError(f"input '{name}'", got, ", ".join(names))
    checked = {}
    for profile in profiles:
        tensor, where = as_tensor(given[profile.name]), f"input '{profile.name}'"
        if dtype_name(tensor.dtype) != profile.dtype:
            raise ShapeError(where, dtype_name(tensor.dtype), profile.dtype, "Convert it before the call.")
        shape = tuple(tensor.shape)
        fits = len(shape) == len(profile.min) and all(
            low <= size <= high for low, size, high in zip(profile.min, shape, profile.max, strict=True)
        )
        if not fits:
            raise ShapeError(where, f"shape {list(shape)}", describe(profile),
                             "Build the engine with a wider --batch, --height or --width.")  # fmt: skip
        checked[profile.name] = tensor
    return checked


def describe(profile: TensorProfile) -> str:
    """``[1..4, 4, 64..192, 64..192]``."""
    dims = (str(low) if low == high else f"{low}..{high}" for low, high in zip(profile.min, profile.max, strict=True))
    return f"[{', '.join(dims)}]"
