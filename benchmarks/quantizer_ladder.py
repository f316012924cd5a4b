"""Layer-output SQNR of every rung of the quantizer, per format, on tokens that it never saw.

    python benchmarks/quantizer_ladder.py [--size 512x1024] [--tokens 512] [--format int4 ...] [--dtype bfloat16]

The layers are synthetic: random weights and inputs with outlier channels, the inputs correlated (their covariance has a
decaying spectrum), because trained models' are and because error feedback has nothing to work with otherwise.
One thread, so that the seconds mean something.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import script
import torch
from torch import Tensor
from torch.nn.functional import gelu

from svdq_trt.contract.formats import FORMATS
from svdq_trt.quantize.layer import QuantizedLinear, quantize_group
from svdq_trt.quantize.preset import PRESETS, Preset

FRESH = 2048  # tokens that the quantizer does not get


def mixture(g: torch.Generator, tokens: int, k: int, decay: float) -> Tensor:
    """[T, K] whose covariance has eigenvalues i^(-2 decay) along random directions."""
    spectrum = torch.arange(1, k + 1).pow(-decay)
    basis = torch.linalg.qr(torch.randn(k, k, generator=g)).Q
    x: Tensor = torch.randn(tokens, k, generator=g) * spectrum @ basis * k**0.5
    return x


def outlier_layer(n: int, k: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A linear with strong correlation; one channel in 64 is 20 times larger in x, another one 10 times in W."""
    g = torch.Generator().manual_seed(0)
    x, w = mixture(g, tokens, k, 0.8), torch.randn(n, k, generator=g) / k**0.5
    x[:, torch.randperm(k, generator=g)[: k // 64]] *= 20
    w[:, torch.randperm(k, generator=g)[: k // 64]] *= 10
    return w, x


def after_gelu_layer(n: int, k: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The second linear of an MLP: skewed inputs from K/4 features, rows of uneven size, some low rank."""
    g = torch.Generator().manual_seed(1)
    hidden = mixture(g, tokens, k // 4, 0.6) @ torch.randn(k // 4, k, generator=g) / (k // 4) ** 0.5
    x = gelu(hidden + 0.3 * torch.randn(k, generator=g)) * torch.randn(k, generator=g).mul(0.8).exp()
    w = torch.randn(n, k, generator=g) * torch.randn(n, 1, generator=g).mul(0.5).exp()
    return (w + 0.5 * torch.randn(n, 16, generator=g) @ torch.randn(16, k, generator=g)) / k**0.5, x


def mild_layer(n: int, k: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A linear after a layer norm: weak correlation, a mean, channels of uneven size, no outliers."""
    g = torch.Generator().manual_seed(2)
    x = mixture(g, tokens, k, 0.3) + torch.randn(k, generator=g)
    x = x / x.std(1, keepdim=True) * torch.randn(k, generator=g).mul(0.5).exp()
    return torch.randn(n, k, generator=g) / k**0.5, x


LAYERS = {"outliers": outlier_layer, "after GELU": after_gelu_layer, "mild": mild_layer}
_RTN = Preset("rtn", grids=1, tokens=0, rows=1024, search_power_iterations=2, power_iterations=8)
_BOTH = replace(_RTN, name="both", grids=6)
_SCALES = replace(_BOTH, name="scales", iterations=4, scales=True)
RUNGS: dict[str, tuple[Preset, bool]] = {  # name -> preset, with a low-rank part
    "rtn": (_RTN, False),
    "smooth": (replace(_BOTH, name="smooth"), False),
    "svd": (replace(_RTN, name="svd"), True),
    "both": (_BOTH, True),
    "+iter": (replace(_BOTH, name="iter", iterations=4), True),
    "+scales": (_SCALES, True),
    "+gptq": (replace(_SCALES, name="gptq", gptq=True, dampings=(1.0, 4.0)), True),
    "+refit": (PRESETS["default"], True),
    "best": (PRESETS["best"], True),
}


def fresh_sqnr(q: QuantizedLinear, w: Tensor, fresh: Tensor) -> float:
    """SQNR in dB of the quantized w on tokens [T, K] in the act dtype."""
    want = fresh.float() @ w.T
    noise = q.module()(fresh).float() - want
    return float(10 * torch.log10(want.square().sum() / noise.square().sum()))


def make_parser(doc: str) -> argparse.ArgumentParser:
    """The options of a script that quantizes synthetic layers; the first line of `doc` describes it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--size", default="512x1024", help="NxK (default 512x1024)")
    parser.add_argument("--tokens", type=int, default=512, help="calibration tokens (default 512)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    return parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--format", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    n, k = map(int, args.size.split("x"))
    print(f"N = {n}, K = {k}, rank {args.rank}, {args.tokens} tokens, {args.dtype}; dB on {FRESH} others (seconds)")
    print(f"{'layer':<12}{'format':<8}" + "".join(f"{name:>13}" for name in RUNGS))
    for layer, make in LAYERS.items():
        w, x = make(n, k, args.tokens + FRESH)
        seen, fresh = x.to(dtype).split((args.tokens, FRESH))
        for name in args.format:
            cells = []
            for preset, low_rank in RUNGS.values():
                start = time.process_time()
                rank = args.rank if low_rank else 0
                q = quantize_group([w], [None], seen, FORMATS[name], rank, act_dtype=dtype, preset=preset)
                seconds = time.process_time() - start
                cells.append(f"{fresh_sqnr(q, w, fresh):7.2f} ({seconds:.1f})")
            print(f"{layer:<12}{name:<8}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    script.run(main)
