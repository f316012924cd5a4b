"""``torch.ops.svdq.linear``: the op contract as a torch op, with fake, CPU and CUDA implementations.

Its arguments are svdq_trt/contract/ops.py's inputs, format and activation, which select the op type that the exporter
writes, and the attributes of a linear. The CPU body follows the reference to output rounding; on CUDA the project's
kernels run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdq_trt.base.errors import ShapeError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.contract.ops import ATTRIBUTES, CONSTANTS, INPUTS
from svdq_trt.contract.weights import SvdqWeights

_NUMBERS = [a for a in ATTRIBUTES if not a.of_op]
#: of the arguments behind x
_NAMES = [*(spec.name for spec in CONSTANTS), "format", "activation", *(a.name for a in _NUMBERS)]


def _schema() -> str:
    """The signature as torch writes it; attributes have the contract's defaults."""
    numbers = [
        f"SymInt {a.name}={int(a.default)}" if a.kind == "int" else f"float {a.name}={float(a.default)}"
        for a in _NUMBERS
    ]
    arguments = [*(f"Tensor {spec.name}" for spec in INPUTS), "str format", "str activation", *numbers]
    return f"({', '.join(arguments)}) -> Tensor"


def weights_of(arguments: Sequence[Any]) -> SvdqWeights:
    """What the op's arguments behind x say; trailing numbers that are the default may be left out, as torch does."""
    given = dict(zip(_NAMES, arguments, strict=False))
    given["format"], given["activation"] = FORMATS[given["format"]], Activation(given["activation"])
    given["act_unsigned"] = bool(given.get("act_unsigned", False))
    return SvdqWeights(**given)


def apply(x: Tensor, weights: SvdqWeights) -> Tensor:
    """The op on [..., K], through torch's dispatcher: Y [..., N_out] in x's dtype."""
    settings = (weights.format.name, weights.activation.value, *weights.attributes.values())
    y: Tensor = torch.ops.svdq.linear(x, *weights.tensors.values(), *settings)
    return y


def as_kernel(run: Callable[[Tensor, SvdqWeights], Tensor]) -> Callable[..., Tensor]:
    """`run` as torch calls an implementation: with all arguments in a row."""
    return lambda x, *arguments: run(x, weights_of(arguments))


def reference(x: Tensor, weights: SvdqWeights, act: torch.dtype | None = None) -> Tensor:
    """The op's body in torch, on any device: Y [..., N_out] in x's dtype.

    Args:
        x: [..., K]; may be f32 with 16-bit weights.
        act: dtype that x̂ and t are rounded to, and whose range Y has; default: x's.

    Raises:
        ShapeError, UnsupportedError: see SvdqWeights.check; or x that does not fit them.
    """
    _check_features(x, weights)
    weights.check("svdq::linear")
    return with_weight(x, weights.unpack(), weights, act)


def with_weight(x: Tensor, w: Tensor, weights: SvdqWeights, act: torch.dtype | None = None) -> Tensor:
    """`reference` once the weight is unpacked: w [N, K] f32 is what its codes and scales mean."""
    rows, act = x.reshape(-1, x.shape[-1]), act or x.dtype
    x_hat = numerics.smooth(rows, weights.act_mul, weights.act_shift, act)
    xq = numerics.fake_quantize_act(x_hat, weights.format, weights.act_unsigned)
    y = torch.addmm(weights.bias.float(), xq, w.T)
    if weights.rank:
        t = numerics.project_down(rows, weights.lora_down, act)
        y = torch.addmm(y, t, weights.lora_up.float().T)
    y = activate(y, weights.activation)
    y = torch.where(rows.isfinite().all(-1, keepdim=True), y, torch.nan)
    return numerics.saturate(y, act).to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def _fake(x: Tensor, weights: SvdqWeights) -> Tensor:
    return x.new_empty((*x.shape[:-1], weights.activation.n_out(weights.n)))


def _cuda(x: Tensor, weights: SvdqWeights) -> Tensor:
    from svdq_trt.nn import capi

    _check_features(x, weights)
    y = capi.linear(x.reshape(-1, x.shape[-1]), weights)
    return y.reshape(*x.shape[:-1], y.shape[-1])


linear = torch.library.custom_op(
    "svdq::linear", as_kernel(reference), mutates_args=(), device_types="cpu", schema=_schema()
)
linear.register_fake(as_kernel(_fake))
linear.register_kernel("cuda")(as_kernel(_cuda))


def activate(y: Tensor, activation: Activation) -> Tensor:
    """The op's activation on [..., N] f32; a gated one halves N."""
    if activation.gated:
        value, gate = y.chunk(2, dim=-1)
        return value * activate(gate, activation.function)
    if activation is Activation.GELU:
        return F.gelu(y)
    if activation is Activation.GELU_TANH:
        return F.gelu(y, approximate="tanh")
    if activation is Activation.SILU:
        return F.silu(y)
    return y


def _check_features(x: Tensor, weights: SvdqWeights) -> None:
    if x.shape[-1] != weights.k:
        raise ShapeError("svdq::linear", f"x has {x.shape[-1]} features", f"{weights.k} (qweight)")
