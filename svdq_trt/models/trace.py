"""A run of a model on meta tensors as a graph: which operation reads which tensor, and in which module.

It sees torch's functions and methods of tensors, not the operators below them: an attention or a chunk is one
operation, and a run of a whole FLUX takes seconds.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.recipe import weight_layers

_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(eq=False)
class Value:
    """One tensor of the run.

    Attributes:
        shape: its sizes in the first call.
        op: what made it; None for an argument of the model and for a parameter.
        readers: the operations that read it, in order; None stands for the model's caller.
        arguments: bits of the model's arguments that it depends on.
        grows: its sizes are others in the second call.
    """

    shape: tuple[int, ...]
    op: Op | None = None
    readers: list[Op | None] = field(default_factory=list)
    arguments: int = 0
    grows: bool = False


@dataclass(eq=False)
class Op:
    """One operation.

    Attributes:
        index: its place in the run.
        name: name of torch's function.
        args, kwargs: as called, each tensor as its Value.
        inputs, outputs: all Values among the arguments, and in the result.
        scope: dotted name of the module whose forward calls it.
        layer: dotted name of the linear or convolution whose product it is; "" for any other operation.
    """

    index: int
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Value]
    scope: str
    layer: str
    outputs: list[Value] = field(default_factory=list)


@dataclass
class Call:
    """One call of a module: the tensors that it takes and returns."""

    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)


@dataclass
class Trace:
    """A run.

    Attributes:
        ops: all operations in order.
        results: what the model returns.
        calls: the calls of each module, by dotted name.
        touched: layers whose parameters something else than their own product reads.
    """

    ops: list[Op] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)


def trace(module: nn.Module, calls: Sequence[Mapping[str, Any]]) -> Trace:
    """Run `module` with each of two calls; the graph is the first one's, and knows what is larger in the second.

    Raises:
        UnsupportedError: the model needs values to run, or takes another path at another size.
    """
    first, second = (_run(module, call) for call in calls)
    if not _same_path(first, second):  # a model may keep tables that it makes when it first needs them
        first, second = (_run(module, call) for call in calls)
    if not _same_path(first, second):
        got = "another path for a larger image or text"
        raise UnsupportedError(type(module).__name__, got, "the same operations at every size")
    for one, other in zip(first.ops, second.ops, strict=True):
        for a, b in zip((*one.inputs, *one.outputs), (*other.inputs, *other.outputs), strict=True):
            a.grows = a.shape != b.shape
    return first


def _same_path(first: Trace, second: Trace) -> bool:
    return [op.name for op in first.ops] == [op.name for op in second.ops]


def _run(module: nn.Module, call: Mapping[str, Any]) -> Trace:
    recorder = _Recorder(module, call)
    plain = {"return_dict": False} if "return_dict" in inspect.signature(module.forward).parameters else {}
    try:
        with torch.no_grad(), _autocast_off_meta(), recorder.watching(), recorder:
            result = module(**call, **plain)
    except Exception as error:  # of any class: the model is anyone's
        what = re.split(r"[.;:]\s|\n", str(error))[0]
        got = f"cannot run without values, at '{_line(error)}' ({what})"
        raise UnsupportedError(type(module).__name__, got, "a path that no value decides") from error
    recorder.trace.results = recorder.values(result)
    for value in recorder.trace.results:
        value.readers.append(None)
    return recorder.trace


@contextmanager
def _autocast_off_meta() -> Iterator[None]:
    """Context in which models that turn autocast off for a tensor's device may do so on meta, where there is none."""
    autocast = torch.autocast
    torch.autocast = lambda device_type, *args, **kwargs: autocast(  # type: ignore[assignment, misc]
        "cpu" if device_type == "meta" else device_type, *args, **kwargs
    )
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


def _line(error: Exception) -> str:
    """The last line of the model's own code that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "/torch/" not in f.filename]
    return own[-1].line or "" if own else ""


class _Recorder(TorchFunctionMode):
    """Records what runs inside its context."""

    def __init__(self, module: nn.Module, call: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.trace = module, Trace()
        self._scopes: list[tuple[str, Call]] = []
        self._of: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's only while the tensor lives
        self._owner = {id(p): name for name, m in weight_layers(module).items() for p in m.parameters()}
        for bit, tensor in enumerate(t for t in pytree.tree_leaves(dict(call)) if isinstance(t, Tensor)):
            self._new(tensor, None).arguments = 1 << bit

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and record it if it makes or changes a tensor."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        changed = args[0] if name == "__setitem__" else result
        outputs = [t for t in pytree.tree_leaves(changed) if isinstance(t, Tensor)]
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        layer = self._layer(name, given)
        self.trace.touched |= {self._owner[id(t)] for t in given if id(t) in self._owner} - {layer}
        if outputs:
            values = pytree.tree_map(lambda t: self._value(t) if isinstance(t, Tensor) else t, (args, kwargs))
            inputs = [self._value(t) for t in given]
            scope = self._scopes[-1][0] if self._scopes else ""
            op = Op(len(self.trace.ops), name, values[0], values[1], inputs, scope, layer)
            for value in inputs:
                value.readers.append(op)
            op.outputs = [self._new(t, op) for t in outputs]
            self.trace.ops.append(op)
        return result

    def values(self, tree: Any) -> list[Value]:
        """The Values of all tensors in a tree."""
        return [self._value(t) for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which the calls of all modules are recorded."""
        hooks = []
        for name, part in self.module.named_modules():
            hooks.append(part.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            hooks.append(part.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[[Any, Any, Any], None]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            call = Call(self.values((args, kwargs)))
            self.trace.calls.setdefault(name, []).append(call)
            self._scopes.append((name, call))

        return enter

    def _leave(self, _: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._scopes.pop()[1].outputs = self.values(result)

    def _layer(self, name: str, given: Sequence[Tensor]) -> str:
        """The layer whose product this is."""
        return self._owner.get(id(given[1]), "") if name in _LAYERS and len(given) > 1 else ""

    def _value(self, tensor: Tensor) -> Value:
        return self._of.get(id(tensor)) or self._new(tensor, None)

    def _new(self, tensor: Tensor, op: Op | None) -> Value:
        """A new Value for a tensor that is new, or has been changed in place."""
        arguments = 0
        for value in op.inputs if op else ():
            arguments |= value.arguments
        value = self._of[id(tensor)] = Value(tuple(tensor.shape), op, arguments=arguments)
        self._alive.append(tensor)
        return value
