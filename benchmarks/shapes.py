"""The linears that are measured, by the model and layer that they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One linear: y [M, N] = x [M, K] · W [N, K]ᵀ. q, k and v that share an input are one linear."""

    model: str
    name: str
    m: int
    k: int
    n: int


#: FLUX.1 at 1024²: 4096 image and 512 text tokens.
FLUX = (
    Shape("FLUX.1", "flux_qkv", 4608, 3072, 9216),
    Shape("FLUX.1", "flux_out", 4608, 3072, 3072),
    Shape("FLUX.1", "flux_fc1", 4608, 3072, 12288),
    Shape("FLUX.1", "flux_fc2", 4608, 12288, 3072),
    Shape("FLUX.1", "flux_single_in", 4608, 3072, 21504),
    Shape("FLUX.1", "flux_single_out", 4608, 15360, 3072),
)
#: SDXL at 1024², batch 2: 4096 tokens at 640 channels, 1024 at 1280.
SDXL = (
    Shape("SDXL", "sdxl640_qkv", 8192, 640, 1920),
    Shape("SDXL", "sdxl640_out", 8192, 640, 640),
    Shape("SDXL", "sdxl640_ff1", 8192, 640, 5120),
    Shape("SDXL", "sdxl640_ff2", 8192, 2560, 640),
    Shape("SDXL", "sdxl1280_qkv", 2048, 1280, 3840),
    Shape("SDXL", "sdxl1280_out", 2048, 1280, 1280),
    Shape("SDXL", "sdxl1280_ff1", 2048, 1280, 10240),
    Shape("SDXL", "sdxl1280_ff2", 2048, 5120, 1280),
)
#: PixArt-Sigma at 1024², batch 2.
PIXART = (
    Shape("PixArt", "pixart_qkv", 8192, 1152, 3456),
    Shape("PixArt", "pixart_out", 8192, 1152, 1152),
    Shape("PixArt", "pixart_ff1", 8192, 1152, 4608),
    Shape("PixArt", "pixart_ff2", 8192, 4608, 1152),
)
#: SANA 1.6B at 1024², batch 2: 1024 tokens; the gated feed-forward's pointwise convolutions as linears.
SANA = (
    Shape("SANA", "sana_qkv", 2048, 2240, 6720),
    Shape("SANA", "sana_out", 2048, 2240, 2240),
    Shape("SANA", "sana_ff1", 2048, 2240, 11200),
    Shape("SANA", "sana_ff2", 2048, 5632, 2240),  # 5600 padded to a multiple of 64
)
#: Z-Image at 1024²: 4096 image and 512 text tokens.
Z_IMAGE = (
    Shape("Z-Image", "zimage_qkv", 4608, 3840, 11520),
    Shape("Z-Image", "zimage_out", 4608, 3840, 3840),
    Shape("Z-Image", "zimage_ff1", 4608, 3840, 20480),
    Shape("Z-Image", "zimage_ff2", 4608, 10240, 3840),
)
ALL = FLUX + SDXL + PIXART + SANA + Z_IMAGE


@dataclass(frozen=True)
class FeedForward:
    """Two of the linears above with an activation between them."""

    fc1: Shape
    fc2: Shape
    activation: str


_BY_NAME = {shape.name: shape for shape in ALL}
FEED_FORWARDS = tuple(
    FeedForward(_BY_NAME[fc1], _BY_NAME[fc2], activation)
    for fc1, fc2, activation in (
        ("flux_fc1", "flux_fc2", "gelu_tanh"),
        ("pixart_ff1", "pixart_ff2", "gelu_tanh"),
        ("sdxl1280_ff1", "sdxl1280_ff2", "geglu"),
        ("sdxl640_ff1", "sdxl640_ff2", "geglu"),
        ("zimage_ff1", "zimage_ff2", "swiglu"),
    )
)
