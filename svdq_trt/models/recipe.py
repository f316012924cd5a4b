"""The fate of each linear and convolution: quantized in a group, or kept in 16 bit with a reason.

Letters: N output features, K input features.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.contract.formats import ACT_SHIFT, K_MULTIPLE, N_MULTIPLE, R_MAX, Activation

#: The module types that hold matmul weights; every one of them is in a group or in `kept`.
WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

_UNITS = {"": 1, "K": 10**3, "M": 10**6}
_FEATURES_PER_ZERO = 32  # at least, where zeros make K fit


@dataclass(frozen=True)
class LinearGroup:
    """One svdq node: linears that read the same input, their weights stacked on N in the order of `members`.

    Smoothing (`act_mul`) and `lora_down` are shared inside a group, as the members share x.

    Attributes:
        node: dotted name at which the fused module is installed.
        members: dotted names of the nn.Linear it replaces.
        activation: what the node applies after the bias; such a node replaces the activation module as well.
        weight_only: few tokens and much weight: format w4a16, activations stay 16 bit.
        source: name of the norm whose output is x; None where x is something else.
        x_from: the activation whose output x is, with nothing in between: the quantizer may then use unsigned codes.
        rank_factor: R is this many times the rank asked for, for members that would otherwise have a branch each.
        columns: the node takes only input features [start, stop) of its one member; other nodes take the others, and
            the outputs are added. None: all of them.
        rows: the node has only these output features [start, stop) of its one member, in this order; another node has
            the others. None: all of them, in the member's order.
        idle: name of a module that passes on what it is given, since the node does its work.
        then: name of the linear that reads y and with which the node is all that their module does.
    """

    node: str
    members: tuple[str, ...]
    activation: Activation = Activation.NONE
    weight_only: bool = False
    source: str | None = None
    columns: tuple[int, int] | None = None
    rank_factor: int = 1
    x_from: Activation = Activation.NONE
    rows: tuple[tuple[int, int], ...] | None = None
    idle: str = ""
    then: str = ""

    def rank(self, rank: int) -> int:
        """R of this node, for the rank that the user asked for."""
        return min(rank * self.rank_factor, R_MAX)

    @property
    def act_shift(self) -> float:
        """The shift that makes every x of this node non-negative, for unsigned codes; 0 if there is none."""
        return ACT_SHIFT.get(self.x_from, 0.0)


@dataclass(frozen=True)
class Kept:
    """A linear or convolution that stays in 16 bit, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The whole model: members of `groups` and `kept` together are all its linears and convolutions."""

    groups: tuple[LinearGroup, ...]
    kept: tuple[Kept, ...]


def in_float32(model: nn.Module | type[nn.Module], name: str) -> bool:
    """Whether its library keeps the parameter or layer called `name` in f32 in a 16-bit model of this class.

    transformers has two such lists; that without `strict` is for f16, which none of its models has here.
    """
    strict, plain = "_keep_in_fp32_modules_strict", "_keep_in_fp32_modules"
    kept = getattr(model, strict if hasattr(model, strict) else plain, None) or ()
    return not set(kept).isdisjoint(name.split("."))


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every linear and convolution of `module`, by dotted name, in registration order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, WEIGHT_LAYERS)}


def padding(k: int) -> int:
    """How many zeros follow the `k` input features of a node's members; they make K fit the op where few do."""
    more = -k % K_MULTIPLE
    return more if more <= k // _FEATURES_PER_ZERO else 0


def is_pointwise(layer: nn.Module) -> bool:
    """Is it a convolution that is a linear on each pixel's channels."""
    if not isinstance(layer, nn.modules.conv._ConvNd) or layer.transposed or layer.groups > 1:
        return False
    one = {*layer.kernel_size, *layer.stride}  # without padding: its pixels would be the bias
    return one == {1} and not any(p != "valid" and p for p in layer.padding)


def node_input(layer: nn.Module, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
    """[M, K]: what a group's node reads of `x`, which its first member `layer` reads: [..., K], or [B, K, H, W]."""
    tokens = x if isinstance(layer, nn.Linear) else x.movedim(1, -1)
    return pad_features(tokens, group).flatten(0, -2)


def pad_features(tensor: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """[..., K]: the columns of a member's x or weight that a group has, with zeros behind them where K is padded."""
    start, stop = group.columns or (0, tensor.shape[-1])
    part, more = tensor[..., start:stop], 0 if group.columns else padding(tensor.shape[-1])
    return nn.functional.pad(part, (0, more)) if more else part


def complete(
    module: nn.Module, candidates: Sequence[LinearGroup], reasons: dict[str, str], skip: Sequence[str] = ()
) -> Recipe:
    """Split `candidates` into groups and kept layers, and account for every other layer.

    Args:
        module: the model with its linears not yet replaced.
        candidates: groups that the model's family would quantize.
        reasons: for every other layer, by name, why it stays.
        skip: the user's exceptions: fnmatch patterns, one of which keeps a whole group if it matches one member; or
            `<2M`: every group with fewer weights than that, except weight_only ones.

    Raises:
        UsageError: an entry of `skip` that matches no candidate, or is not a number after `<`.
        UnsupportedError: a layer that is in neither.
    """
    layers = weight_layers(module)
    why = dict(reasons)
    unused = set(skip)
    sizes = {p: _weights(p) for p in skip if p.startswith("<")}
    for group in candidates:
        hits = {p for p in skip for m in (group.node, *group.members) if fnmatch.fnmatchcase(m, p)}
        if sizes and not group.weight_only:
            size = sum(w.numel() for w in member_tensors(module, group)[0])
            hits |= {p for p, limit in sizes.items() if size < limit}
        unused -= hits
        reason = f"left out by --skip '{min(hits)}'" if hits else _misfit(module, group)
        if reason:
            why.update(dict.fromkeys(group.members, reason))
    # Groups that share a member by columns or rows are kept or quantized together: a layer is quantized whole, or not.
    groups = [g for g in candidates if not any(m in why for m in g.members)]
    if unused:
        raise UsageError("--skip", f"'{min(unused)}' matches no quantized layer", "a name or pattern that does")
    kept = tuple(Kept(name, why[name]) for name in layers if name in why)
    grouped = {m for g in groups for m in g.members}
    for name in layers.keys() - grouped - why.keys():
        raise UnsupportedError(f"layer '{name}'", "no rule for it", "a layer that the model's class has")
    return Recipe(tuple(groups), kept)


def _weights(text: str) -> int:
    """Parse `<2M`, `<500K` or `<2000000` as a number of weights."""
    number, unit = (text[1:-1], text[-1]) if text[-1] in _UNITS else (text[1:], "")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError("--skip", f"'{text}'", "a number of weights behind <, as in '<2M'") from None


def _misfit(module: nn.Module, group: LinearGroup) -> str:
    """Why this group is not for 4 bits: diffusers, or the op contract; empty if it is."""
    for name in group.members:
        if in_float32(module, name):
            return "diffusers keeps it in f32"
        n, k = _cut(module.get_parameter(f"{name}.weight").detach(), group).shape
        if k % K_MULTIPLE:
            return f"K = {k} is not a multiple of {K_MULTIPLE}"
        if n % N_MULTIPLE:
            return f"N = {n} is not a multiple of {N_MULTIPLE}"
    return ""


def stack_group(module: nn.Module, group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights [N, K] and bias [N] of a group's members, stacked in order; the bias is None if no member has one.

    A single member's tensors are returned as they are, not copied. Of several groups that share a member by columns,
    the first has its bias.
    """
    weights, biases = member_tensors(module, group)
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    if all(b is None for b in biases):
        return weight, None
    parts = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return weight, parts[0] if len(parts) == 1 else torch.cat(parts)


def member_tensors(module: nn.Module, group: LinearGroup) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Weight [N, K] and bias [N] or None of each member, in order; views of the module's (on meta: shapes alone)."""
    layers = [module.get_submodule(name) for name in group.members]
    assert all(isinstance(layer, WEIGHT_LAYERS) for layer in layers)
    has_bias = [layer.bias is not None and _starts(group) for layer in layers]
    return read_members(group, has_bias, lambda name: module.get_parameter(name).detach())


def read_members(
    group: LinearGroup, has_bias: Sequence[bool], read: Callable[[str], torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Read what `member_tensors` returns by parameter name; `has_bias` says which members give the node a bias."""
    weights = [_cut(read(f"{name}.weight"), group) for name in group.members]
    biases = [_rows(read(f"{m}.bias"), group) if has else None for m, has in zip(group.members, has_bias, strict=True)]
    return weights, biases


def _cut(weight: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """The part [N, K] of a member's weight that a group has; of a linear, or a convolution [N, K, 1, 1]."""
    return _rows(pad_features(weight.flatten(1), group), group)


def _rows(tensor: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """The output features of a member's weight or bias that a group has."""
    if group.rows is None:
        return tensor
    parts = [tensor[start:stop] for start, stop in group.rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _starts(group: LinearGroup) -> bool:
    """Whether the group adds the bias, which goes with feature 0 of x."""
    return group.columns is None or group.columns[0] == 0
