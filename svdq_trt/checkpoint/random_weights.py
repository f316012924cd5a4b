"""Weights from a seed that behave like trained ones: outliers in weights and activations, sane at any depth.

For trying the whole path without a checkpoint, and for tests. What is imitated, for each quantized linear:

    weight outliers       4 to 8 input channels whose weights are 20 to 100 times the others
    activation outliers   3 channels in which the norm in front of it has a gamma of 8 to 16
    the usual trade       where weights are large the norm's gamma is small (0.1 to 0.2), as in trained ones;
                          so neither kind of channel alone makes up the output

Scales follow from the fan-in and from those channels: every linear's output is about 1 in size, and what is
added to the residual stream half of it. Each tensor depends on (version, seed, its name) only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import torch
from torch import nn

from svdq_trt.base.errors import UsageError
from svdq_trt.models import LinearGroup, ModelSpec
from svdq_trt.models.attention import RMS_NORMS

GENERATOR_VERSION = 1  # raise it with any change to the values, so that digests change too

#: Output gain by layer name; first match wins, 1 otherwise. SiLU halves the variance of what follows it.
_GAINS = (
    (
        r".*\.(to_q|to_k)",
        1.6,
    ),  # logits of standard deviation 2.6: attention picks a few tokens, as trained ones do
    (r".*\.SelfAttention\.[qk]", 0.57),  # the same for T5, which does not scale its logits
    (r".*\.(to_out\.0|to_add_out|ff\.net\.2|ff_context\.net\.2|proj_out|conv_point)", 0.5),
    (r".*\.(SelfAttention\.o|DenseReluDense\.wo)", 0.5),
    (r".*\.conv1|conv_out|.*_embedding\.linear_2|.*_embedder\.linear_2", 1.67),
    (r"adaln_single\.linear|time_embed\.linear", 2.0),  # gates near 1: blocks count as much as what they add to
    (r".*\.conv2", 0.8),
    (r".*\.time_emb_proj", 0.5),
)


class RandomWeights:
    """Every parameter of a model by name, made when asked for; the same name always gives the same values.

    Args:
        spec: the model.
        module: its structure, on meta or not; only names, shapes and dtypes are used, and only now.

    Raises:
        UsageError: a negative seed.
    """

    def __init__(self, spec: ModelSpec, module: nn.Module, seed: int) -> None:
        if seed < 0:
            raise UsageError("--random-weights", str(seed), "a seed of 0 or more")
        self.seed = seed
        groups = spec.groups(module)
        self._by_member = {m: g for g in groups for m in g.members}
        self._by_norm = {g.source: g for g in groups if g.source}
        self._meta = {n: torch.empty_like(p, device="meta") for n, p in module.named_parameters()}
        self._added = {name: RMS_NORMS.get(type(part).__name__, 0.0) for name, part in module.named_modules()}
        self._tables = {name: table for table in spec.tables for name in table.parameters}

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the module's order."""
        return tuple(self._meta)

    def read(self, name: str, device: str = "cpu") -> torch.Tensor:
        """The parameter's value, in its dtype; other devices draw other numbers of the same distribution, faster."""
        owner, _, leaf = name.rpartition(".")
        meta = self._meta[name]
        if name in self._tables:
            return self._tables[name].made()[name].to(device, meta.dtype)
        rng = torch.Generator(device).manual_seed(_hash(self.seed, name))
        if leaf != "weight":
            value = 0.02 * torch.randn(meta.shape, generator=rng, device=device)
        elif owner in self._by_norm:
            value = _outliers(self._by_norm[owner], owner, meta.numel(), self.seed)[1] - self._added[owner]
        elif meta.dim() == 1:
            value = 1 - self._added[owner] + 0.1 * torch.randn(meta.shape, generator=rng, device=device)
        else:
            value = _matrix(owner, meta, self._by_member.get(owner), self.seed, rng)
        return value.to(device, meta.dtype)


def fill_random(
    spec: ModelSpec,
    module: nn.Module,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
    device: str = "cpu",
) -> None:
    """Give every (meta) parameter of `module` its value, in the parameter's dtype on `device`.

    Other devices draw other numbers of the same distributions, much faster.

    Raises:
        UsageError: a negative seed.
    """
    weights = RandomWeights(spec, module, seed)
    for done, name in enumerate(weights.names, 1):
        owner, _, leaf = name.rpartition(".")
        value = weights.read(name, device)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
        if progress:
            progress(done, len(weights.names), name)


def _matrix(owner: str, meta: torch.Tensor, group: LinearGroup | None, seed: int, rng: torch.Generator) -> torch.Tensor:
    """A linear's or convolution's weight: unit normals, of a linear in a node times one factor per feature of x."""
    weight = torch.empty(meta.shape, dtype=meta.dtype, device=rng.device).normal_(generator=rng)
    gain = next((g for pattern, g in _GAINS if re.fullmatch(pattern, owner)), 1.0)
    if group is None or meta.dim() > 2:
        return weight.mul_(gain / meta[0].numel() ** 0.5)
    scale, gamma = _outliers(group, owner, meta.shape[1], seed)
    scale *= gain / (scale * gamma).norm()  # then the output's variance is gain², for unit-variance normalised x
    return weight.mul_(scale.to(weight.device, meta.dtype))


def _outliers(group: LinearGroup, owner: str, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per input channel, f32 [K]: the weights' factor and the gamma of the norm in front (ones without one).

    Members of a group and their norm ask with the same group, so they agree without sharing state. Where a group spans
    several blocks, each block has channels of its own.
    """
    key, blocks = group.node, {m.rpartition(".")[0] for m in group.members}
    if len(blocks) > 1:
        key = f"{owner.rpartition('.')[0]}.{group.node.rpartition('.')[2]}"
    rng = torch.Generator().manual_seed(_hash(seed, f"outliers of {key}"))
    scale, gamma = torch.ones(k), torch.ones(k)
    count = int(torch.randint(4, 9, (1,), generator=rng)) if group.source else 4
    channels = torch.randperm(k, generator=rng)
    large, loud = channels[:count], channels[count : count + 3]
    if not group.source:  # unit inputs: at the low end, or these channels alone would be the output
        scale[large] = 20 * 1.5 ** torch.rand(count, generator=rng)
        return scale, gamma
    scale[large] = 20 * 5 ** torch.rand(count, generator=rng)
    gamma = 1 + 0.2 * torch.randn(k, generator=rng).clamp(-3, 3)
    gamma[large] = 0.1 * 2 ** torch.rand(count, generator=rng)
    gamma[loud] = 8 * 2 ** torch.rand(3, generator=rng)
    return scale, gamma


def _hash(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"svdq-random-{GENERATOR_VERSION}:{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # manual_seed takes 63 bits
