"""The models this tool knows, by the name used on the command line."""

from __future__ import annotations

from svdq_trt.base.errors import UsageError
from svdq_trt.models import described, language_model
from svdq_trt.models.chroma import CHROMA, CHROMA_TINY
from svdq_trt.models.controlnet import FLUX_CONTROLNET, FLUX_CONTROLNET_TINY, SDXL_CONTROLNET, SDXL_CONTROLNET_TINY
from svdq_trt.models.flux import (
    FLUX_BLOCKS,
    FLUX_CANNY,
    FLUX_CONTROL_TINY,
    FLUX_DEPTH,
    FLUX_DEV,
    FLUX_FILL,
    FLUX_FILL_TINY,
    FLUX_KONTEXT,
    FLUX_KONTEXT_TINY,
    FLUX_KREA,
    FLUX_SCHNELL,
    FLUX_TINY,
)
from svdq_trt.models.flux2 import FLUX2_DEV, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, FLUX2_TINY
from svdq_trt.models.krea2 import KREA2_RAW, KREA2_TINY, KREA2_TURBO
from svdq_trt.models.longcat import LONGCAT_IMAGE, LONGCAT_TINY
from svdq_trt.models.pixart import PIXART_SIGMA, PIXART_TINY
from svdq_trt.models.qwen_image import (
    QWEN_IMAGE,
    QWEN_IMAGE_2512,
    QWEN_IMAGE_EDIT,
    QWEN_IMAGE_EDIT_TINY,
    QWEN_IMAGE_TINY,
)
from svdq_trt.models.recipe import Kept, LinearGroup, Recipe, member_tensors, read_members, stack_group
from svdq_trt.models.sana import SANA, SANA_TINY
from svdq_trt.models.sd3 import SD3_TINY, SD35_LARGE, SD35_MEDIUM
from svdq_trt.models.sdxl import SDXL, SDXL_INPAINT, SDXL_REFINER, SDXL_TINY, SDXL_TURBO, SSD_1B
from svdq_trt.models.spec import WITH_CONTROLNET, Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.t5 import T5_TINY, T5_XXL
from svdq_trt.models.wan import WAN22_T2V_A14B_HIGH, WAN22_T2V_A14B_LOW, WAN22_TI2V_5B, WAN_TINY
from svdq_trt.models.z_image import Z_IMAGE_TINY, Z_IMAGE_TURBO

_ALL = (
    SDXL,
    SDXL_TURBO,
    SDXL_INPAINT,
    SDXL_REFINER,
    SSD_1B,
    SDXL_TINY,
    FLUX_DEV,
    FLUX_SCHNELL,
    FLUX_KREA,
    FLUX_KONTEXT,
    FLUX_FILL,
    FLUX_CANNY,
    FLUX_DEPTH,
    FLUX_TINY,
    FLUX_KONTEXT_TINY,
    FLUX_FILL_TINY,
    FLUX_CONTROL_TINY,
    FLUX_BLOCKS,
    FLUX2_DEV,
    FLUX2_KLEIN_4B,
    FLUX2_KLEIN_9B,
    FLUX2_TINY,
    CHROMA,
    CHROMA_TINY,
    LONGCAT_IMAGE,
    LONGCAT_TINY,
    KREA2_RAW,
    KREA2_TURBO,
    KREA2_TINY,
    PIXART_SIGMA,
    PIXART_TINY,
    SANA,
    SANA_TINY,
    SD35_MEDIUM,
    SD35_LARGE,
    SD3_TINY,
    QWEN_IMAGE,
    QWEN_IMAGE_2512,
    QWEN_IMAGE_EDIT,
    QWEN_IMAGE_TINY,
    QWEN_IMAGE_EDIT_TINY,
    Z_IMAGE_TURBO,
    Z_IMAGE_TINY,
    WAN22_TI2V_5B,
    WAN22_T2V_A14B_HIGH,
    WAN22_T2V_A14B_LOW,
    WAN_TINY,
    T5_XXL,
    T5_TINY,
    SDXL_CONTROLNET,
    SDXL_CONTROLNET_TINY,
    FLUX_CONTROLNET,
    FLUX_CONTROLNET_TINY,
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _ALL}
_WITH_CONTROLNET = {spec.name: spec for spec in (spec.with_controlnet() for spec in _ALL if spec.residuals)}

TWINS = tuple(spec.name for spec in MODELS.values() if not spec.twin)
#: arch -> twins that every test run builds for it and compares with 16 bit (tests/e2e/test_twins.py)
BUILT_TWINS = {89: TWINS, 120: (SDXL_TINY.name, FLUX_TINY.name)}
TWIN_ARCHS = tuple(BUILT_TWINS)

__all__ = [
    "BUILT_TWINS",
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
    "is_description",
    "member_tensors",
    "read_members",
    "stack_group",
]


def is_description(name: str) -> bool:
    """Whether it is a description, rather than a model's name or a folder."""
    return name.startswith("{")


def get_model(name: str) -> ModelSpec:
    """The model of a name or of a description (ModelSpec.source). Raises UsageError listing the known names."""
    if name.startswith(language_model.MARK):
        return language_model.spec_of(name)
    if is_description(name):
        return described.spec_of(name)
    found = MODELS.get(name) or _WITH_CONTROLNET.get(name)
    if found is None and name.endswith(WITH_CONTROLNET):
        takes = ", ".join(spec.base for spec in _WITH_CONTROLNET.values())
        raise UsageError("--controlnet", f"model '{name.removesuffix(WITH_CONTROLNET)}'", f"one of {takes}")
    if found is None:
        raise UsageError("--model", f"'{name}'", f"one of {', '.join(MODELS)}")
    return found
