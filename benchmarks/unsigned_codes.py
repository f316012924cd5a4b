"""The gain of unsigned activation codes after GELU: layer-output SQNR with `int4`, on tokens not used to quantize.

    python benchmarks/unsigned_codes.py [--size 512x1024] [--tokens 512] [--dtype bfloat16]

The layers are synthetic: an MLP's second linear, which reads GELU (tanh) of correlated features.
"""

from __future__ import annotations

import script
import torch
from quantizer_ladder import FRESH, RUNGS, fresh_sqnr, make_parser, mixture
from torch import Tensor
from torch.nn.functional import gelu

from svdq_trt.contract.formats import ACT_SHIFT, INT4, Activation
from svdq_trt.quantize.layer import quantize_group


def gelu_layer(n: int, k: int, tokens: int, size: float, spread: float) -> tuple[Tensor, Tensor]:
    """Weight and GELU outputs of pre-activations about `size` large, uneven by e^spread from channel to channel."""
    g = torch.Generator().manual_seed(4)
    hidden = mixture(g, tokens, k // 4, 0.4) @ torch.randn(k // 4, k, generator=g)
    hidden = size * hidden / hidden.std() * torch.randn(k, generator=g).mul(spread).exp()
    x = gelu(hidden + 0.5 * torch.randn(k, generator=g) - 0.5, approximate="tanh")
    return torch.randn(n, k, generator=g) / k**0.5, x


LAYERS = {"even": (1.0, 0.3), "uneven": (1.0, 1.0), "large": (3.0, 0.6)}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    n, k = map(int, args.size.split("x"))
    rungs = ("rtn", "smooth", "both", "+refit")
    print(f"N = {n}, K = {k}, rank {args.rank}, {args.tokens} tokens, {args.dtype}; dB on {FRESH} others")
    print(f"{'layer':<10}{'codes':<10}" + "".join(f"{name:>9}" for name in rungs))
    for layer, (size, spread) in LAYERS.items():
        w, x = gelu_layer(n, k, args.tokens + FRESH, size, spread)
        seen, fresh = x.to(dtype).split((args.tokens, FRESH))
        for label, shift in (("signed", 0.0), ("unsigned", ACT_SHIFT[Activation.GELU_TANH])):
            cells = []
            for name in rungs:
                preset, low_rank = RUNGS[name]
                rank = args.rank if low_rank else 0
                q = quantize_group([w], [None], seen, INT4, rank, act_dtype=dtype, act_shift=shift, preset=preset)
                cells.append(f"{fresh_sqnr(q, w, fresh):8.2f}" + ("*" if shift and not q.weights.act_unsigned else " "))
            print(f"{layer:<10}{label:<10}" + "".join(cells), flush=True)
    print("* the quantizer was offered unsigned codes and measured signed ones to be better")


if __name__ == "__main__":
    script.run(main)
