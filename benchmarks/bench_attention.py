"""Time attention against torch's cuDNN and flash backends, same run, same GPU, and compare both with fp64.

    python benchmarks/bench_attention.py --out attention.json
    python benchmarks/bench_attention.py --only flux

Each timed body is a CUDA graph of calls on several sets of inputs, together larger than the L2; before it is timed it
runs by itself for --warm seconds (see bench_linear.py). Ours reads q, k and v as the linears leave them, side by side;
the rivals get each [B, H, L, D] for itself, which costs them nothing here. "prepared" adds what stands in front of
attention in the model, norms of q and k, rotation and the joining of two streams; the rivals have none of it.
Errors are those of 256 queries of one head, on inputs with a channel in 37 eight times as large.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import script
import torch
import torch.nn.functional as F
from bench_linear import Body, Timed, sets_for, time_together
from bench_options import need_gpu
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from svdq_trt.contract.attention import AttentionOp, AttentionSettings, Option, Source
from svdq_trt.nn import attention as ops


@dataclass(frozen=True)
class Shape:
    """One attention: L queries and T keys of H heads of size D; where T = L, q, k and v are side by side.

    `text` of the L tokens are a stream of their own, and `rotary` says that norms and a rotation come before.
    """

    name: str
    b: int
    h: int
    l: int  # noqa: E741 (the letter of the contract)
    t: int
    d: int
    dtype: str
    text: int = 0
    rotary: bool = False


ALL = (
    Shape("flux_joint", 1, 24, 4608, 4608, 128, "bfloat16", 512, True),
    Shape("flux_single", 1, 24, 4608, 4608, 128, "bfloat16", 0, True),
    Shape("video", 1, 12, 32760, 32760, 128, "bfloat16"),
    Shape("sdxl640_self", 2, 10, 4096, 4096, 64, "float16"),
    Shape("sdxl1280_self", 2, 20, 1024, 1024, 64, "float16"),
    Shape("sdxl640_cross", 2, 10, 4096, 77, 64, "float16"),
    Shape("sdxl1280_cross", 2, 20, 1024, 77, 64, "float16"),
    Shape("pixart_self", 2, 16, 4096, 4096, 72, "float16"),
    Shape("pixart_cross", 2, 16, 4096, 300, 72, "float16"),
)


@dataclass(frozen=True)
class Inputs:
    """Operands of one call: `packed` as the linears leave them, [B, L, (q, k, v)] or q and [B, T, (k, v)]."""

    shape: Shape
    packed: tuple[Tensor, ...]

    @classmethod
    def draw(cls, shape: Shape, loud: bool = False) -> Inputs:
        """Unit normals; `loud`: every 37th channel eight times as large."""
        dtype = getattr(torch, shape.dtype)
        width = shape.h * shape.d

        def normals(tokens: int, parts: int) -> Tensor:
            x = torch.randn(shape.b, tokens, parts * width, device="cuda")
            if loud:
                x[..., ::37] *= 8
            return x.to(dtype)

        if shape.t == shape.l:
            return cls(shape, (normals(shape.l, 3),))
        return cls(shape, (normals(shape.l, 1), normals(shape.t, 2)))

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, tokens, D], contiguous."""
        parts = (p for x in self.packed for p in x.unflatten(-1, (-1, self.shape.h, self.shape.d)).unbind(2))
        q, k, v = (p.transpose(1, 2).contiguous() for p in parts)
        return q, k, v

    def settings(self) -> AttentionSettings:
        """Attributes of the op."""
        return AttentionSettings(heads=self.shape.h, kv_heads=self.shape.h, scale=self.shape.d**-0.5)

    def ours(self) -> Callable[[], Tensor]:
        """The op without norm and rotation, in one stream."""
        names = ("qkv",) if len(self.packed) == 1 else ("q", "kv")
        source = Source.SELF if len(self.packed) == 1 else Source.CROSS
        call = ops.Call(AttentionOp(source, ()), dict(zip(names, self.packed, strict=True)), self.settings())
        return lambda: ops.apply(call)[0]

    def prepared(self) -> Callable[[], Tensor]:
        """The op with the shape's norms, rotation and streams."""
        s, x = self.shape, self.packed[0]
        weights = [1 + 0.1 * torch.randn(s.d, device="cuda").to(x.dtype) for _ in range(4)]
        angle = torch.randn(s.l, s.d // 2, device="cuda").repeat_interleave(2, -1)
        tensors = {"qkv": x[:, s.text :].contiguous(), "q_norm": weights[0], "k_norm": weights[1]}
        tensors |= {"cos": angle.cos(), "sin": angle.sin()}
        if s.text:
            tensors |= {"added_qkv": x[:, : s.text].contiguous()}
            tensors |= {"added_q_norm": weights[2], "added_k_norm": weights[3]}
        op = AttentionOp(Source.JOINT if s.text else Source.SELF, (Option.NORMED, Option.ROTARY))
        call = ops.Call(op, {t.name: tensors[t.name] for t in op.inputs}, self.settings())
        return lambda: ops.apply(call)[0]


def rival(backend: SDPBackend, heads: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    """Attention of torch by one of its backends."""
    q, k, v = heads

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def errors(shape: Shape) -> dict[str, float]:
    """How ours and cuDNN's agree, in dB, with fp64, on 256 queries of one head."""
    inputs = Inputs.draw(shape, loud=True)
    q, k, v = (t[0, 0].double() for t in inputs.heads())
    q = q[:256]
    exact = (q @ k.T * shape.d**-0.5).softmax(-1) @ v
    mine = inputs.ours()().unflatten(-1, (shape.h, shape.d))[0, : len(q), 0].double()
    theirs = rival(SDPBackend.CUDNN_ATTENTION, inputs.heads())()[0, 0, : len(q)].double()
    signal = exact.square().sum()
    return {
        name: round(10 * math.log10(signal / (y - exact).square().sum()), 2)
        for name, y in (("ours_db", mine), ("cudnn_db", theirs))
    }


def bench(shape: Shape, seconds: float, warm: float) -> dict[str, Any]:
    """Time everything for one shape."""
    tokens = shape.l * 2 + shape.t * 2
    sets = [Inputs.draw(shape) for _ in range(min(4, sets_for(2 * shape.b * shape.h * shape.d * tokens)))]
    calls: dict[str, list[Timed]] = {
        "ours": [one.ours() for one in sets],
        "cudnn": [rival(SDPBackend.CUDNN_ATTENTION, one.heads()) for one in sets],
        "flash": [rival(SDPBackend.FLASH_ATTENTION, one.heads()) for one in sets],
    }
    if shape.rotary:
        calls["prepared"] = [one.prepared() for one in sets]
    bodies = {name: Body(some) for name, some in calls.items()}
    times = time_together(bodies, seconds, warm)
    return {"shape": asdict(shape), "us": {k: asdict(t) for k, t in times.items()}} | errors(shape)


def report(rows: list[dict[str, Any]]) -> str:
    """Format the table."""
    head = f"{'attention':16}{'cudnn':>9}{'flash':>9}{'ours':>9}{'prepared':>10}{'x cudnn':>9}{'TFLOP/s':>9}"
    lines = [head + f"{'dB':>8}{'cudnn dB':>10}"]
    for row in rows:
        s, us = row["shape"], {k: v["median"] for k, v in row["us"].items()}
        flops = 4 * s["b"] * s["h"] * s["l"] * s["t"] * s["d"]
        lines.append(
            f"{s['name']:16}{us['cudnn']:9.1f}{us['flash']:9.1f}{us['ours']:9.1f}{us.get('prepared', math.nan):10.1f}"
            f"{us['cudnn'] / us['ours']:9.2f}{flops / us['ours'] * 1e-6:9.0f}{row['ours_db']:8.1f}"
            f"{row['cudnn_db']:10.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="substring of the shapes' names")
    parser.add_argument("--seconds", type=float, default=0.1, help="per timing (%(default)s)")
    parser.add_argument("--warm", type=float, default=0.2, help="seconds a body runs before (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    need_gpu()
    torch.manual_seed(0)
    rows = [bench(shape, args.seconds, args.warm) for shape in ALL if args.only in shape.name]
    print(report(rows))
    if args.out:
        machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    script.run(main)
