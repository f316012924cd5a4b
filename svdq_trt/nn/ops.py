"""``torch.ops.svdq.linear``: the op contract as a torch op, with fake, CPU and CUDA implementations.

The arguments are svdq_trt/contract/ops.py's inputs and attributes; `format` and `activation` select the op type
that the exporter writes. The CPU body follows the reference to output rounding; on CUDA the project's kernels run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svdq_trt.base.errors import ShapeError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, Activation, Format
from svdq_trt.contract.ops import input_shapes


def reference(
    x: Tensor,
    qweight: Tensor,
    wscale: Tensor,
    act_mul: Tensor,
    lora_down: Tensor,
    lora_up: Tensor,
    bias: Tensor,
    wscale2: Tensor,
    format: str,
    activation: str,
    act_unsigned: int = 0,
    act_shift: float = 0.0,
) -> Tensor:
    """The op's body in torch, on any device; also in f32, as an op of 16-bit weights and no rounding between them.

    Y [..., N_out] in x's dtype; x is [..., K]. See svdq_trt/contract/ops.py for the other shapes.

    Raises:
        ShapeError: a weight input whose shape does not follow from qweight and lora_down.
    """
    _check_shapes(x, qweight, wscale, act_mul, lora_down, lora_up, bias, wscale2, format)
    w = numerics.dequantize_weight(numerics.QuantWeight(qweight, wscale, wscale2), FORMATS[format])
    return with_weight(
        x, w, act_mul, lora_down, lora_up, bias, FORMATS[format], Activation(activation), bool(act_unsigned), act_shift
    )


def with_weight(
    x: Tensor,
    w: Tensor,
    act_mul: Tensor,
    lora_down: Tensor,
    lora_up: Tensor,
    bias: Tensor,
    fmt: Format,
    act: Activation,
    act_unsigned: bool,
    act_shift: float,
) -> Tensor:
    """`reference` once the weight is unpacked: w [N, K] f32 is what its codes and scales mean."""
    rows = x.reshape(-1, x.shape[-1])
    x_hat = numerics.smooth(rows, act_mul, act_shift)
    xq = numerics.fake_quantize_act(x_hat, fmt, act_unsigned)
    y = torch.addmm(bias.float(), xq, w.T)
    if lora_down.shape[0]:
        t = (rows.float() @ lora_down.float().T).to(x.dtype)  # rounded once, as the kernels do
        y = torch.addmm(y, t.float(), lora_up.float().T)
    y = activate(y, act)
    y = torch.where(rows.isfinite().all(-1, keepdim=True), y, torch.nan)
    if x.dtype == torch.float16:
        y = y.clamp(-65504.0, 65504.0)
    return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


linear = torch.library.custom_op("svdq::linear", reference, mutates_args=(), device_types="cpu")


@linear.register_fake
def _linear_fake(
    x: Tensor,
    qweight: Tensor,
    wscale: Tensor,
    act_mul: Tensor,
    lora_down: Tensor,
    lora_up: Tensor,
    bias: Tensor,
    wscale2: Tensor,
    format: str,
    activation: str,
    act_unsigned: int = 0,
    act_shift: float = 0.0,
) -> Tensor:
    n_out = Activation(activation).n_out(qweight.shape[0])
    return x.new_empty((*x.shape[:-1], n_out))


@linear.register_kernel("cuda")
def _linear_cuda(
    x: Tensor,
    qweight: Tensor,
    wscale: Tensor,
    act_mul: Tensor,
    lora_down: Tensor,
    lora_up: Tensor,
    bias: Tensor,
    wscale2: Tensor,
    format: str,
    activation: str,
    act_unsigned: int = 0,
    act_shift: float = 0.0,
) -> Tensor:
    from svdq_trt.nn import capi

    _check_shapes(x, qweight, wscale, act_mul, lora_down, lora_up, bias, wscale2, format)
    weights = (qweight, wscale, act_mul, lora_down, lora_up, bias, wscale2)
    rows = x.reshape(-1, x.shape[-1])
    y = capi.linear(rows, weights, FORMATS[format], Activation(activation), bool(act_unsigned), act_shift)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def activate(y: Tensor, activation: Activation) -> Tensor:
    """The op's activation on [..., N] f32; Geglu halves N."""
    if activation is Activation.GELU:
        return F.gelu(y)
    if activation is Activation.GELU_TANH:
        return F.gelu(y, approximate="tanh")
    if activation is Activation.SILU:
        return F.silu(y)
    if activation is Activation.GEGLU:
        value, gate = y.chunk(2, dim=-1)
        return value * F.gelu(gate)
    return y


def _check_shapes(x: Tensor, qweight: Tensor, *rest: Tensor | str) -> None:
    """Raise ShapeError naming the first input that does not fit."""
    wscale, act_mul, lora_down, lora_up, bias, wscale2, fmt_name = rest
    n, k, r = qweight.shape[0], 2 * qweight.shape[1], lora_down.shape[0]  # type: ignore[union-attr]
    if x.shape[-1] != k:
        raise ShapeError("svdq::linear", f"x has {x.shape[-1]} features", f"{k} (qweight)")
    want = input_shapes(FORMATS[fmt_name], n, k, r)  # type: ignore[index]
    got = {
        "wscale": wscale,
        "act_mul": act_mul,
        "lora_down": lora_down,
        "lora_up": lora_up,
        "bias": bias,
        "wscale2": wscale2,
    }
    for name, tensor in got.items():
        if tuple(tensor.shape) != want[name]:  # type: ignore[union-attr]
            raise ShapeError("svdq::linear", f"{name} {tuple(tensor.shape)}", str(want[name]))  # type: ignore[union-attr]
