"""A model's inputs, and whether given tensors fit them: torch tensors or numpy arrays, without importing torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import ml_dtypes
import numpy as np

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ShapeError
from svdq_trt.contract.sizes import SIZES

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]

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

#: dtypes whose values float32 has: small whole numbers, as timesteps are, and shorter floats
_FITS_FLOAT32 = {"float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64"}


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


def input_profiles(
    trt: Any, engine: Any, axes: Mapping[str, tuple[str, ...]], filled: Container[str] = ()
) -> list[TensorProfile]:
    """The engine's inputs with their ranges in optimization profile 0, without those that the session fills.

    `axes` has those of the manifest: TensorRT knows no names of sizes.
    """
    found = []
    for name in input_names(trt, engine):
        if name not in filled:
            low, opt, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
            dtype = trt_dtype_name(engine.get_tensor_dtype(name))
            found.append(TensorProfile(name, dtype, low, opt, high, axes.get(name, ())))
    return found


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
    """The given values by name, in the engine's order and dtypes; any other value becomes an array.

    Whole numbers and 16-bit floats become the float32 that an input wants. A scalar stands for all of a batch, as a
    scheduler's timestep does. Sizes are checked here, as a runtime's own words for them help nobody.

    Raises:
        ShapeError: an input missing or unknown, of another dtype, outside the profile, of a size that the graph cannot
            run, or of another size than the same axis of another input.
    """
    names = [p.name for p in profiles]
    for name in (*(n for n in names if n not in given), *(n for n in given if n not in names)):
        got = "missing" if name in names else "no input of this engine"
        raise ShapeError(f"input '{name}'", got, ", ".join(names))
    values = {p.name: _converted(p, given[p.name]) for p in profiles}
    seen: dict[str, tuple[int, str]] = {}  # name of an axis -> its size as a multiple, and an input that has it
    for profile in profiles:
        if values[profile.name].ndim:
            _check_shape(profile, tuple(values[profile.name].shape), seen)
    for profile in profiles:
        if not values[profile.name].ndim and profile.min:
            values[profile.name] = _spread(profile, values[profile.name], seen)
    return values


def _converted(profile: TensorProfile, value: Any) -> Any:
    """The value in the profile's dtype. Raises ShapeError where that would lose something."""
    plain = isinstance(value, bool | int | float)
    value = value if is_tensor(value) else np.asarray(value)
    found = dtype_name(value)
    if found == profile.dtype:
        return value
    if plain or (profile.dtype == "float32" and found in _FITS_FLOAT32):
        return value.float() if is_tensor(value) else value.astype(numpy_dtype(profile.dtype))
    raise ShapeError(f"input '{profile.name}'", found, profile.dtype, "Convert it before the call.")


def _check_shape(profile: TensorProfile, shape: tuple[int, ...], seen: dict[str, tuple[int, str]]) -> None:
    """Raise ShapeError unless a shape is in the profile and its axes fit their rule and what was `seen` of them."""
    where = f"input '{profile.name}'"
    axes = profile.axes or ("",) * len(profile.min)
    if len(shape) != len(profile.min):
        raise ShapeError(where, f"shape {list(shape)}", describe(profile))
    outside = [
        axis
        for axis, low, size, high in zip(axes, profile.min, shape, profile.max, strict=True)
        if not low <= size <= high
    ]
    if outside:
        raise ShapeError(where, f"shape {list(shape)}", describe(profile), _wider(outside))
    for axis, size in zip(axes, shape, strict=True):
        times, name = rule_of(axis)
        if size % times:
            below = size - size % times
            near = f"{below} or {below + times}" if below else f"{times}"
            raise ShapeError(where, f"{name} {size}", f"a multiple of {times}, as {near}")
        count, owner = seen.setdefault(name, (size // times, profile.name)) if axis else (size, "")
        if size != count * times:
            fix = "Give one row for each image." if name == "batch" else ""
            raise ShapeError(where, f"{name} {size}", f"{count * times}, as in '{owner}'", fix)


def rule_of(axis: str) -> tuple[int, str]:
    """What the sizes of an axis are multiples of, and its name: 4 and height for ``4*height``, else 1 and the text."""
    found = re.fullmatch(r"([1-9]\d{0,8})\*(\w+)", axis)
    return (int(found[1]), found[2]) if found else (1, axis)


def _wider(axes: Sequence[str]) -> str:
    """The advice for sizes outside their range: the options of a build that set them; "" for what nothing sets."""
    symbols = [symbol for axis in axes for symbol in rule_of(axis)[1].split("_")]
    options = [f"--{symbol}" for symbol in dict.fromkeys(symbols) if symbol in SIZES]
    return f"Build the engine with a wider {' or '.join(options)}." if options else ""


def _spread(profile: TensorProfile, scalar: Any, seen: Mapping[str, tuple[int, str]]) -> Any:
    """The scalar for all of an input [batch], whose size the other inputs tell or the profile fixes."""
    size, _ = seen.get(profile.axes[0] if profile.axes else "", (0, ""))
    if not size and profile.min == profile.max:
        size = profile.min[0]
    if len(profile.min) != 1 or not size:
        raise ShapeError(f"input '{profile.name}'", "a scalar", describe(profile))
    return scalar.reshape(1).repeat(size)


def describe(profile: TensorProfile) -> str:
    """The range as text, ``[1..4, 4, 64..192, 64..192]``; a bound beyond int32 means no bound."""
    dims = (
        str(low) if low == high else f"{low}.." + (str(high) if high < 2**31 - 1 else "")
        for low, high in zip(profile.min, profile.max, strict=True)
    )
    return f"[{', '.join(dims)}]"
