"""Calls of an engine that fit it and that do not; every runtime of ours judges them alike."""

from __future__ import annotations

import torch

from svdq_trt.artifact.manifest import TensorProfile

Shape = tuple[int, ...]

PROFILES = [
    TensorProfile(
        "sample", "float16", (1, 4, 8, 8), (2, 4, 16, 16), (4, 4, 32, 32), ("batch", "", "4*height", "4*width")
    ),
    TensorProfile("timestep", "float32", (1,), (2,), (4,), ("batch",)),
    TensorProfile("text", "float16", (1, 77, 8), (2, 77, 8), (4, 154, 8), ("batch", "tokens", "")),
    TensorProfile("text_ids", "float32", (77, 3), (77, 3), (154, 3), ("tokens", "")),
]
_SHAPES: dict[str, Shape] = {"sample": (2, 4, 16, 16), "timestep": (2,), "text": (2, 77, 8), "text_ids": (77, 3)}

FIT: dict[str, dict[str, Shape]] = {
    "as tuned": {},
    "smallest": {"sample": (1, 4, 8, 8), "timestep": (1,), "text": (1, 77, 8)},
    "height and width differ": {"sample": (2, 4, 12, 28)},
    "more text": {"text": (2, 100, 8), "text_ids": (100, 3)},
}
#: case -> (shapes, the sentence without its advice, the advice)
UNFIT: dict[str, tuple[dict[str, Shape], str, str]] = {
    "batch": (
        {"sample": (5, 4, 16, 16)},
        "input 'sample': shape [5, 4, 16, 16], want [1..4, 4, 8..32, 8..32].",
        " Build the engine with a wider --batch.",
    ),
    "height and width": (
        {"sample": (2, 4, 36, 4)},
        "input 'sample': shape [2, 4, 36, 4], want [1..4, 4, 8..32, 8..32].",
        " Build the engine with a wider --height or --width.",
    ),
    "tokens": (
        {"text": (2, 231, 8)},
        "input 'text': shape [2, 231, 8], want [1..4, 77..154, 8].",
        " Build the engine with a wider --tokens.",
    ),
    "channels": (
        {"sample": (2, 3, 16, 16)},
        "input 'sample': shape [2, 3, 16, 16], want [1..4, 4, 8..32, 8..32].",
        "",
    ),
    "rank": ({"sample": (4, 16, 16)}, "input 'sample': shape [4, 16, 16], want [1..4, 4, 8..32, 8..32].", ""),
    "multiple of height": (
        {"sample": (2, 4, 17, 16)},
        "input 'sample': height 17, want a multiple of 4, as 16 or 20.",
        "",
    ),
    "multiple of width": (
        {"sample": (2, 4, 16, 30)},
        "input 'sample': width 30, want a multiple of 4, as 28 or 32.",
        "",
    ),
    "batches differ": (
        {"text": (1, 77, 8)},
        "input 'text': batch 1, want 2, as in 'sample'.",
        " Give one row for each image.",
    ),
    "timestep of one": (
        {"timestep": (1,)},
        "input 'timestep': batch 1, want 2, as in 'sample'.",
        " Give one row for each image.",
    ),
    "tokens differ": ({"text_ids": (80, 3)}, "input 'text_ids': tokens 80, want 77, as in 'text'.", ""),
}


def tensors(**shapes: Shape) -> dict[str, torch.Tensor]:
    """Zeros of the profiles' dtypes, in `shapes` instead of those that fit."""
    return {p.name: torch.zeros((_SHAPES | shapes)[p.name], dtype=getattr(torch, p.dtype)) for p in PROFILES}
