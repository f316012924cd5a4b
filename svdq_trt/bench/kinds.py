"""The kinds of kernels that a step consists of, by their names, and an account of its time by kind.

Kernels overlap: ours start before their predecessor has ended. So a kernel counts with the time by which it moved the
end of the run; these times and the gaps add up to the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: (kernel or copy, us, start in us)
Kernel = tuple[str, float, float]

#: kind -> pattern of kernel names, TensorRT's, ours, and those that torch calls; first match wins
KINDS = {
    "attention": r"_mha_|fmha|flash|sdpa|svdq::.*(attention|prepare_kernel)",
    "ours: quantize": r"svdq::.*(quantize|lora_down)",
    "ours: product": r"svdq::",
    "convolution": r"conv(Fwd|olve|2d)|fprop",
    "matmul": r"matMul|gemm|nvjet|scaled_mm",
    "norm": r"Gnor|MeanSub|MulMean|[nN]orm|RowwiseMoments",
    "rotary": r"Cos|Sin|MulSub",
    "copy": r"__myl_((Slic|Resh|Tran|Move|Mul|Conc)+)(Etc)?_|Memcpy|copy_kernel|CatArray|fused_(cat|clone|copy)",
    "other": r"",
}
#: times in which nothing ran
GAPS = "gaps"

#: kind -> {"count", "ms"}
Account = dict[str, dict[str, float]]


def kind_of(kernel: str) -> str:
    """The first kind whose pattern the name has."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel))


def by_kind(kernels: Sequence[Kernel]) -> Account:
    """The account of kernels in the order of their starts."""
    found = {kind: {"count": 0, "ms": 0.0} for kind in (*KINDS, GAPS)}
    end = 0.0
    for name, us, start in kernels:
        found[GAPS]["ms"] += max(0.0, start - end) / 1e3
        row = found[kind_of(name)]
        row["count"] += 1
        row["ms"] += max(0.0, start + us - max(end, start)) / 1e3
        end = max(end, start + us)
    return {kind: {"count": row["count"], "ms": round(row["ms"], 3)} for kind, row in found.items()}
