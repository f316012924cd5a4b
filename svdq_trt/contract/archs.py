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


def parse_arch(text: str) -> int:
    """Parse ``sm_89`` as 89. Raises UsageError for anything else."""
    match = re.fullmatch(r"sm_(\d{2,3})", text)
    if not match or int(match[1]) not in KERNELS:
        known = ", ".join(f"sm_{a}" for a in KERNELS)
        raise UsageError("--arch", f"'{text}'", f"one of {known}")
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
