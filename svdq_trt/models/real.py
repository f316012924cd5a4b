"""Running a model's own code without complex numbers and without f64, which ONNX and TensorRT do not have.

`RealNumbers` is a context. In it, a complex tensor is a `Pair`: the real tensor [..., 2] that torch.view_as_real gives,
with the shape and the methods of the complex one; f64 is f32. Both are of rotary embeddings, computed by code that no
export changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from svdq_trt.base.errors import UnsupportedError

_NARROWER = {
    torch.float64: torch.float32,
    torch.complex128: torch.complex64,
}


class Pair:
    """A complex tensor as the real tensor [..., 2] of its parts."""

    def __init__(self, parts: Tensor) -> None:
        self.parts = parts

    @property
    def shape(self) -> torch.Size:
        """Sizes of the complex tensor."""
        return self.parts.shape[:-1]

    @property
    def ndim(self) -> int:
        """Dimensions of the complex tensor."""
        return self.parts.ndim - 1

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        """Always complex64."""
        return torch.complex64

    @property
    def real(self) -> Tensor:
        """The real parts."""
        return self.parts[..., 0]

    @property
    def imag(self) -> Tensor:
        """The imaginary parts."""
        return self.parts[..., 1]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch that has a Pair among its arguments."""
        return _on_pairs(getattr(func, "__name__", str(func)), tuple(args), dict(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: _on_pairs(name, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Pair:
        return _on_pairs("__getitem__", (self, index), {})  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Pair:
        return _on_pairs("mul", (self, other), {})  # type: ignore[no-any-return]

    __rmul__ = __mul__


class RealNumbers(TorchFunctionMode):
    """The context in which no tensor is complex or f64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what stands for it."""
        name = getattr(func, "__name__", str(func))
        plain: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(_real, (tuple(args), dict(kwargs or {})))
        if name == "double":
            name, func = "float", Tensor.float
        if name in _MAKERS:
            return _MAKERS[name](*plain[0], **plain[1])
        if any(isinstance(leaf, Pair) for leaf in pytree.tree_leaves(plain)):
            return _on_pairs(name, *plain)
        return func(*plain[0], **plain[1])


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """The context in which torch.autocast does nothing: classes only turn it off, where it is never on.

    It knows no meta tensors, and torch.export makes functions of its own of what is in it.
    """
    own = torch.autocast
    torch.autocast = _NoAutocast  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.autocast = own  # type: ignore[misc]


class _NoAutocast(contextlib.nullcontext[None]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


class ParametersOnMeta(TorchFunctionMode):
    """The context in which a class is constructed on meta, but for tensors that it computes: those have values.

    Layers make their parameters by torch.empty, and nothing else is made by it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, on meta if it makes a tensor without values."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "empty" and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def parameters_to(module: nn.Module, device: str | torch.device) -> None:
    """Move parameters, and nothing else, to a device, without values."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.device != torch.device(device):
                part._parameters[name] = nn.Parameter(torch.empty_like(value, device=device), requires_grad=False)


def _real(value: Any) -> Any:
    """An argument as it may be: complex as a Pair, f64 as f32."""
    if isinstance(value, torch.dtype):
        return _NARROWER.get(value, value)
    if not isinstance(value, Tensor):
        return value
    with torch._C.DisableTorchFunction():
        if value.is_complex():
            return Pair(torch.view_as_real(value).float())
        return value.float() if value.dtype == torch.float64 else value


def _polar(length: Tensor, angle: Tensor) -> Pair:
    return Pair(torch.stack((length * angle.cos(), length * angle.sin()), dim=-1))


_MAKERS: dict[str, Callable[..., Pair]] = {
    "polar": _polar,
    "complex": lambda real, imag: Pair(torch.stack((real, imag), dim=-1)),
    "view_as_complex": Pair,
}

#: functions along axes -> their parameters after the tensor, and defaults of those that count from the end
_ALONG: dict[str, tuple[str, ...]] = {
    "cat": ("dim",),
    "chunk": ("chunks", "dim"),
    "concat": ("dim",),
    "flatten": ("start_dim", "end_dim"),
    "index_select": ("dim", "index"),
    "narrow": ("dim", "start", "length"),
    "repeat_interleave": ("repeats", "dim"),
    "select": ("dim", "index"),
    "split": ("split_size_or_sections", "dim"),
    "squeeze": ("dim",),
    "stack": ("dim",),
    "transpose": ("dim0", "dim1"),
    "unbind": ("dim",),
    "unsqueeze": ("dim",),
}
_FROM_THE_END: dict[str, dict[str, Any]] = {"flatten": {"end_dim": -1}}
#: functions of the whole tensor
_WHOLE = {"clone", "contiguous", "detach"}
#: functions that take all sizes, or an order of all axes
_SIZES = {"expand", "view", "reshape", "repeat"}


def _on_pairs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function `name` on Pairs."""
    if name in ("view_as_real", "resolve_conj"):
        return args[0].parts if name == "view_as_real" else args[0]
    if name in ("mul", "multiply", "__mul__", "__rmul__"):
        return _product(*args)
    if name in ("real", "imag", "__get__"):
        return getattr(args[0], name)
    if name in ("size", "dim", "numel"):
        return {"size": _size, "dim": lambda pair: pair.ndim, "numel": lambda pair: pair.shape.numel()}[name](*args)
    if name in ("conj", "conj_physical"):
        return Pair(torch.stack((args[0].real, -args[0].imag), dim=-1))
    if name in ("to", "type", "cpu", "cuda"):
        return _moved(name, *args, **kwargs)
    if name == "__getitem__":
        return Pair(args[0].parts[_whole_index(args[1])])
    if name in _SIZES:
        return Pair(getattr(args[0].parts, name)(*_list(args[1:]), 1 if name == "repeat" else 2))
    if name == "permute":
        order = [axis % args[0].ndim for axis in _list(args[1:])]
        return Pair(args[0].parts.permute(*order, args[0].ndim))
    if name in _WHOLE:
        return Pair(getattr(args[0].parts, name)(**kwargs))
    if name in _ALONG:
        return _along(name, args, kwargs)
    raise UnsupportedError("complex numbers", f"torch's '{name}' of them", "a function that has a real form here")


def _along(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function along axes; they count from the front, as the parts' axis is one more at the end."""
    first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
    axes = first.ndim + (name in ("stack", "unsqueeze"))
    given = _FROM_THE_END.get(name, {}) | dict(zip(_ALONG[name], args[1:], strict=False)) | kwargs
    given = {key: value % axes if "dim" in key else value for key, value in given.items()}
    parts = pytree.tree_map(lambda leaf: leaf.parts if isinstance(leaf, Pair) else leaf, args[0])
    result = getattr(torch, name)(parts, **given)
    return pytree.tree_map(lambda leaf: Pair(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _product(a: Any, b: Any) -> Pair:
    """The product of two Pairs, or of one and a real tensor or number."""
    if not isinstance(a, Pair):
        a, b = b, a
    if not isinstance(b, Pair):
        return Pair(a.parts * (b.unsqueeze(-1) if isinstance(b, Tensor) else b))
    return Pair(torch.stack((a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real), dim=-1))


def _moved(name: str, pair: Pair, *args: Any, **kwargs: Any) -> Pair:
    """The Pair on another device; its dtype stays."""
    args = tuple(arg for arg in args if not isinstance(arg, torch.dtype))
    kwargs.pop("dtype", None)
    return Pair(getattr(pair.parts, name)(*args, **kwargs)) if args or kwargs else pair


def _size(pair: Pair, dim: int | None = None) -> Any:
    return pair.shape if dim is None else pair.shape[dim]


def _whole_index(index: Any) -> tuple[Any, ...]:
    """The index with the parts' axis at its end, if an Ellipsis is in it."""
    index = index if isinstance(index, tuple) else (index,)
    return (*index, slice(None)) if any(part is Ellipsis for part in index) else index


def _list(sizes: tuple[Any, ...]) -> list[Any]:
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple | torch.Size) else list(sizes)
