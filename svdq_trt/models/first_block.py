"""Where a step cache cuts a transformer, found in a run on meta tensors: behind its first block and its last one.

With x0 and x1 the tokens before and after the first block, and x2 those behind the last one: while x1 - x0 changes
little from step to step, x2 - x1 is taken from an earlier step (first-block cache, as in diffusers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from svdq_trt.base.errors import UsageError
from svdq_trt.models import dataflow as flow
from svdq_trt.models.spec import ModelSpec
from svdq_trt.models.trace import Call, Op, Trace, Value

#: lists of blocks that form one row, as diffusers' own caches know them
_LISTS = ("transformer_blocks", "joint_transformer_blocks", "single_transformer_blocks", "blocks", "layers")


@dataclass(frozen=True)
class Mark:
    """A tensor of a model's run: number `index` of those that the module called `module` is given or `returns`."""

    module: str
    returns: bool
    index: int


@dataclass(frozen=True)
class Cuts:
    """The tensors x0, x1 and x2, all [B, tokens, channels]."""

    before_first: Mark
    behind_first: Mark
    behind_last: Mark


def find_cuts(spec: ModelSpec) -> Cuts:
    """The cuts of a model.

    Raises:
        UsageError: it is no row of blocks that each add to the same tokens.
    """
    module, run = spec.traced()
    blocks = [name for name in run.calls if _is_block(module, name)]
    if len(blocks) < 2:
        raise _refused(spec, f"a {type(module).__name__}, which has fewer than two transformer blocks in a row")
    if again := [name for name in blocks if len(run.calls[name]) > 1]:
        raise _refused(spec, f"its {again[0]} runs more than once in a step")
    ((first,), (last,)) = run.calls[blocks[0]], run.calls[blocks[-1]]
    for end, x2 in _ends(run, blocks[-1], last):
        ends = [i for i, value in enumerate(first.outputs) if value.shape == x2.shape]
        starts = [i for i, value in enumerate(first.inputs) if value.shape == x2.shape]
        if len(ends) == len(starts) == 1:
            if inner := _inside(run, blocks, x2):
                raise _refused(spec, f"an output depends on {inner} other than through the last block")
            return Cuts(Mark(blocks[0], False, starts[0]), Mark(blocks[0], True, ends[0]), end)
    raise _refused(spec, f"its {blocks[-1]} returns no tokens that its {blocks[0]} takes and returns")


def return_cuts(wrapped: nn.Module, inner: str, cuts: Cuts) -> None:
    """Let `wrapped`, whose attribute `inner` is the model, return x0, x1 and x2 of each call behind its outputs."""
    found: dict[Mark, Tensor] = {}
    marks = (cuts.before_first, cuts.behind_first, cuts.behind_last)
    for one in marks:
        module = wrapped.get_submodule(f"{inner}.{one.module}")
        if one.returns:
            module.register_forward_hook(_keep_returned(one, found))
        else:
            module.register_forward_pre_hook(_keep_given(one, found), with_kwargs=True)
    wrapped.register_forward_hook(
        lambda _module, _args, outputs: (
            *((outputs,) if isinstance(outputs, Tensor) else outputs),
            *(found.pop(one) for one in marks),
        )
    )


def _keep_returned(mark: Mark, found: dict[Mark, Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, result: Any) -> None:
        found[mark] = _tensors(result)[mark.index]

    return keep


def _keep_given(mark: Mark, found: dict[Mark, Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        found[mark] = _tensors((args, kwargs))[mark.index]

    return keep


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_block(module: nn.Module, name: str) -> bool:
    owner, _, index = name.rpartition(".")
    return owner in _LISTS and index.isdigit() and isinstance(module.get_submodule(owner), nn.ModuleList)


def _ends(run: Trace, last: str, call: Call) -> Iterator[tuple[Mark, Value]]:
    """What may be x2: what the last block returns and the end of the model reads, or the part of it that it reads."""
    alive = flow.before(run.results)
    for index, value in enumerate(call.outputs):
        readers = [op for op in value.readers if op in alive and not _is_in(op.scope, last)]
        if readers:
            yield Mark(last, True, index), value
        if len(readers) == 1 and readers[0] is not None and readers[0].name == "__getitem__":
            yield from _taken(run, readers[0].outputs[0])


def _taken(run: Trace, value: Value) -> Iterator[tuple[Mark, Value]]:
    """The value as what a module is given."""
    for name, calls in run.calls.items():
        if name and len(calls) == 1 and value in calls[0].inputs:
            yield Mark(name, False, calls[0].inputs.index(value)), value
            return


def _inside(run: Trace, blocks: list[str], x2: Value) -> str:
    """The block inside which is something that the results depend on without x2; "" if there is none."""
    found: set[Op] = set()
    left = [v.op for v in run.results if v is not x2]
    while left:
        op = left.pop()
        if op is not None and op not in found:
            found.add(op)
            left += (v.op for v in op.inputs if v is not x2)
    return next((name for name in blocks if any(_is_in(op.scope, name) for op in found)), "")


def _is_in(scope: str, module: str) -> bool:
    return scope == module or scope.startswith(f"{module}.")


def _refused(spec: ModelSpec, got: str) -> UsageError:
    want = "a transformer whose blocks all add to the same tokens"
    return UsageError("--step-cache", f"{spec.name}: {got}", want, "Build it without.")
