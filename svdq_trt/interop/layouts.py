"""What makers of W4A4 linears do differently: the names of the tensors, the order of their values, and padding."""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.interop.packing import FRAGMENTS, ROWS, TILE, TILES, Packing
from svdq_trt.interop.reader import FLOAT, HALF


@dataclass(frozen=True)
class Layout:
    """How a maker stores one linear.

    Attributes:
        smooth, down, up, codes, scales: names of tensors, behind that of the linear.
        smooth_orig: name of the smoothing before it was fused into a norm, which nothing computes with; "": none.
        packing: the order of values. tile: N and K are padded to a multiple of it.
        floats: dtypes that scales and factors may have.
    """

    smooth: str
    smooth_orig: str
    down: str
    up: str
    codes: str = "qweight"
    scales: str = "wscales"
    packing: Packing = FRAGMENTS
    tile: int = TILE
    floats: tuple[str, ...] = HALF


OLD = Layout("smooth", "smooth_orig", "lora_down", "lora_up")  # of nunchaku's C++ engine
NEW = Layout("smooth_factor", "smooth_factor_orig", "proj_down", "proj_up")  # of nunchaku's Python modules
LITE = Layout("smooth_factor", "", "proj_down", "proj_up", tile=1)  # Nunchaku Lite of diffusers
IN_ROWS = Layout("smooth_factor", "", "proj_down", "proj_up", packing=ROWS, tile=1)  # vLLM-Omni


def kitchen(prefix: str, tiled: bool) -> Layout:
    """comfy-kitchen's; its own names have the prefix "weight_", those of comfy-quants have none."""
    return Layout(
        f"{prefix}smooth_factor",
        "",
        f"{prefix}proj_down",
        f"{prefix}proj_up",
        "weight",
        "weight_scale",
        packing=TILES if tiled else ROWS,
        tile=1,
        floats=FLOAT,
    )
