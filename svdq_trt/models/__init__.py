"""The models this tool knows, by the name used on the command line."""

from __future__ import annotations

from svdq_trt.base.errors import UsageError
from svdq_trt.models import described
from svdq_trt.models.flux import FLUX_BLOCKS, FLUX_DEV, FLUX_SCHNELL, FLUX_TINY
from svdq_trt.models.pixart import PIXART_SIGMA, PIXART_TINY
from svdq_trt.models.recipe import Kept, LinearGroup, Recipe, member_tensors, read_members, stack_group
from svdq_trt.models.sana import SANA, SANA_TINY
from svdq_trt.models.sd3 import SD3_TINY, SD35_LARGE, SD35_MEDIUM
from svdq_trt.models.sdxl import SDXL, SDXL_TINY, SDXL_TURBO
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO

_ALL = (
    SDXL,
    SDXL_TURBO,
    SDXL_TINY,
    FLUX_DEV,
    FLUX_SCHNELL,
    FLUX_TINY,
    FLUX_BLOCKS,
    PIXART_SIGMA,
    PIXART_TINY,
    SANA,
    SANA_TINY,
    SD35_MEDIUM,
    SD35_LARGE,
    SD3_TINY,
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _ALL}

#: archs for which CI builds every twin and compares it with its 16-bit model (tests/e2e/test_twins.py)
TWIN_ARCHS = (89, 120)
TWINS = tuple(spec.name for spec in MODELS.values() if not spec.twin)

__all__ = [
    "MODELS",
    "TWINS",
    "TWIN_ARCHS",
    "Axis",
    "Kept",
    "LinearGroup",
    "ModelSpec",
    "Profile",
    "Recipe",
    "TensorIO",
    "get_model",
    "member_tensors",
    "read_members",
    "stack_group",
]


def get_model(name: str) -> ModelSpec:
    """The model of a name or of a description (ModelSpec.source). Raises UsageError listing the known names."""
    if name.startswith("{"):
        return described.spec_of(name)
    if name not in MODELS:
        raise UsageError("--model", f"'{name}'", f"one of {', '.join(MODELS)}")
    return MODELS[name]
