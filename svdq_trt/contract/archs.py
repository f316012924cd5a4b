"""GPU architectures: names, and the format that ``--format auto`` takes on each.

The archs that a *backend* can build for are not listed here: the backend is asked (svdq_trt/engine/backend.py).
"""

from __future__ import annotations

import re

from svdq_trt.base.errors import UsageError
from svdq_trt.contract.formats import FORMATS, INT4, NVFP4, W4A8, Format

#: arch -> (format, why), by the MMA instructions that the arch has.
AUTO_FORMAT: dict[int, tuple[Format, str]] = {
    80: (W4A8, "int8 MMA; the per-group rescale of int4 costs three times the MMA on an A100"),
    86: (INT4, "native m16n8k64 s4 MMA"),
    89: (INT4, "native m16n8k64 s4 MMA"),
    90: (W4A8, "int8 wgmma; s4 is emulated on Hopper"),
    120: (NVFP4, "native block-scaled e2m1 MMA"),
    121: (NVFP4, "native block-scaled e2m1 MMA"),
}

#: arch -> formats worth building for it. nvfp4 runs below sm_120 by emulation, for tests.
KERNELS: dict[int, tuple[str, ...]] = {
    80: ("int4", "w4a8", "w4a16"),
    86: ("int4", "w4a8", "w4a16"),
    89: ("int4", "w4a8", "w4a16"),
    90: ("int4", "w4a8", "w4a16", "nvfp4"),
    120: ("int4", "w4a8", "w4a16", "nvfp4"),
    121: ("int4", "w4a8", "w4a16", "nvfp4"),
}

#: head sizes that there is an attention kernel for, on every arch
ATTENTION_KERNELS: tuple[int, ...] = tuple(range(8, 129, 8))

#: arch -> head sizes at which our attention was measured faster than TensorRT's own (benchmarks/README.md); what is not
#: here was not measured, or not faster
ATTENTION_MEASURED: dict[int, tuple[int, ...]] = {90: (64, 72, 128)}

ATTENTION_CHOICES = ("auto", "plugin", "tensorrt")


#: TensorRT-RTX can put several archs into a plan, but all then run the oldest one's attention code
ONE_PLAN_PER_ARCH = "A plan is for one arch: give --arch once for each, and each gets an engine of its own."

#: arch -> the processors of the machines that have it, where these are not x86-64
ARM_HOSTS: dict[int, str] = {121: "DGX Spark's is an Arm processor"}


def parse_arch(text: str) -> int:
    """Parse ``sm_89`` as 89. Raises UsageError for anything else."""
    match = re.fullmatch(r"sm_(\d{2,3})", text)
    if not match or int(match[1]) not in KERNELS:
        known = ", ".join(f"sm_{a}" for a in KERNELS)
        several = len(re.findall(r"\d+", text)) > 1
        raise UsageError("--arch", f"'{text}'", f"one of {known}", ONE_PLAN_PER_ARCH if several else "")
    return int(match[1])


def resolve_format(name: str, arch: int) -> Format:
    """The format for ``--format NAME`` on an arch; ``auto`` picks from AUTO_FORMAT."""
    if name == "auto":
        return AUTO_FORMAT[arch][0]
    if name not in FORMATS:
        raise UsageError("--format", f"'{name}'", f"auto or one of {', '.join(FORMATS)}")
    if name not in KERNELS[arch]:
        raise UsageError(
            "--format", f"{name} for sm_{arch}", f"one of {', '.join(KERNELS[arch])}", "Or use --format auto."
        )
    return FORMATS[name]


def resolve_attention(name: str, arch: int) -> tuple[int, ...]:
    """Head sizes of the attentions that ``--attention NAME`` gives to the plugin on an arch; others are TensorRT's.

    Raises:
        UsageError: no such choice.
    """
    if name not in ATTENTION_CHOICES:
        raise UsageError("--attention", f"'{name}'", f"one of {', '.join(ATTENTION_CHOICES)}")
    if name == "auto":
        return ATTENTION_MEASURED.get(arch, ())
    return ATTENTION_KERNELS if name == "plugin" else ()
