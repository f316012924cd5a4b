"""Nunchaku layers made from logical values, in the way its converter makes them: the tests' ground truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from svdq_trt.contract.numerics import E4M3, e2m1_codes, e2m1_values, pack_nibbles, round_e2m1
from svdq_trt.interop.layouts import OLD, Layout
from svdq_trt.interop.packing import FRAGMENTS as F
from svdq_trt.interop.packing import pack_awq, padded
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.w4a4 import Rows


@dataclass
class Truth:
    """A layer: its tensors in the file, and the weight [N, K] f64 and bias [N] that it means."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor = field(default_factory=lambda: torch.zeros(0))
    bias: Tensor = field(default_factory=lambda: torch.zeros(0))


def _codes(w: Tensor, group: int, fp4: bool) -> Tensor:
    """Codes of weights by absolute maximum, so that a group's largest is the format's; a few int4 ones are -8."""
    scaled = w.unflatten(1, (-1, group))
    scaled = scaled / scaled.abs().amax(-1, keepdim=True) * (6 if fp4 else 7)
    if fp4:
        return e2m1_codes(round_e2m1(scaled)).flatten(1)
    values = scaled.round().flatten(1)
    values[::7, ::5] = torch.where(values[::7, ::5] == -7, -8, values[::7, ::5])
    return values.to(torch.int8).view(torch.uint8) & 0xF


def w4a4(
    name: str,
    n: int,
    k: int,
    rank: int = 32,
    fp4: bool = False,
    keys: Layout = OLD,
    dtype=torch.bfloat16,
    seed: int = 0,
    layout: str = "stacked",
    members: tuple[int, ...] = (),
    scales: str = "",
    bias: bool = True,
) -> Truth:
    """A W4A4 layer. scales: of fp4, any of "t" (wtscale, 16 bit), "T" (f32), "c" (wcscales)."""
    g = torch.Generator().manual_seed(seed)
    rows = Rows.of(members or (n,), layout)
    kp, groups = padded(k), 16 if fp4 else 64

    def spread(values: Tensor, row_fill: float, column_fill: float, columns: int) -> Tensor:
        full = torch.full((rows.total, columns), row_fill, dtype=values.dtype)
        full[rows.at] = pad(values, (0, columns - values.shape[1]), value=column_fill)
        return full

    codes = _codes(torch.randn(n, -(-k // groups) * groups, generator=g), groups, fp4)[:, :k]
    smooth = torch.exp(torch.randn(k, generator=g)).to(dtype)
    scale = torch.rand(n, -(-k // groups), generator=g) * 0.1 + 0.01
    scale = scale.to(E4M3) if fp4 else scale.to(dtype)
    values = e2m1_values(codes).double() if fp4 else ((codes ^ 8).to(torch.int8) - 8).double()
    weight = values * scale.double().repeat_interleave(groups, 1)[:, :k]
    t = {
        "qweight": F.codes.pack(pack_nibbles(spread(codes, 0, 0, kp))),
        keys.smooth: F.channels.pack(pad(smooth, (0, kp - k), value=1)),
        keys.smooth_orig: F.channels.pack(pad((smooth.float() * 1.1).to(dtype), (0, kp - k), value=1)),
    }
    if fp4:
        e4m3 = spread(scale.view(torch.uint8), 0x38, 0x38, kp // 16).unflatten(1, (kp // 64, 4))
        t["wscales"] = F.micro.pack(e4m3.transpose(0, 1)).view(E4M3)
        if "t" in scales or "T" in scales:
            kind = torch.float32 if "T" in scales else dtype
            t["wtscale"] = (torch.rand(1, generator=g) + 0.5).to(kind)
            weight = weight * t["wtscale"].double()
        if "c" in scales:
            columns = (torch.rand(n, generator=g) + 0.5).to(dtype)
            t["wcscales"] = F.channels.pack(spread(columns[:, None], 1, 1, 1)[:, 0])
            weight = weight * columns[:, None].double()
    else:
        t["wscales"] = F.scales.pack(spread(scale, 1, 1, kp // 64).T)
    weight = weight / smooth.double()
    if rank:
        down, up = (torch.randn(*s, generator=g).to(dtype) for s in ((rank, k), (n, rank)))
        t[keys.down] = F.down.pack(pad(down, (0, kp - k)))
        t[keys.up] = F.up.pack(spread(up, 0, 0, rank))
        weight = weight + up.double() @ down.double()
    b = torch.randn(n, generator=g).to(dtype) if bias else torch.zeros(n, dtype=dtype)
    if bias:
        t["bias"] = F.channels.pack(spread(b[:, None], 1, 1, 1)[:, 0])
    return Truth({f"{name}.{key}": v.contiguous() for key, v in t.items()}, weight, b)


def awq(name: str, n: int, k: int, chunks: int, dtype=torch.bfloat16, seed: int = 0, symmetric: bool = True) -> Truth:
    """An adaLN layer, rows [C, chunks] and b + 1 where it scales."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 15 if symmetric else 16, (n, k), generator=g, dtype=torch.uint8)
    scale = (torch.rand(n, k // 64, generator=g) * 0.1 + 0.01).to(dtype)
    zero = (-7 * scale.float()).to(dtype) if symmetric else -torch.rand(n, k // 64, generator=g).to(dtype)
    bias = torch.randint(-64, 64, (n,), generator=g).float() / 64
    grouped = codes.double().unflatten(1, (-1, 64))
    offset = -7 * scale.double() if symmetric else zero.double()
    weight = (grouped * scale.double()[..., None] + offset[..., None]).flatten(1)

    def reorder(values: Tensor) -> Tensor:
        return values.unflatten(0, (chunks, n // chunks)).transpose(0, 1).flatten(0, 1).contiguous()

    plus = bias.clone().view(chunks, -1)
    if chunks > 1:
        plus[1] += 1
        if chunks == 6:
            plus[4] += 1
    t = {
        "qweight": pack_awq(reorder(codes)),
        "wscales": reorder(scale).T,
        "wzeros": reorder(zero).T,
        "bias": reorder(plus.flatten()).to(dtype),
    }
    return Truth({f"{name}.{key}": v.contiguous() for key, v in t.items()}, weight, bias.to(dtype))


def reader_of(path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Reader:
    """Save and open."""
    save_file(tensors, path, metadata=metadata)
    return Reader(path, [path])
