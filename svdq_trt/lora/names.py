"""The layers of a model that a LoRA's tensor name means: every spelling in use, as one table.

The table is made from the model's own layers, so a name that is not in it is unknown: nothing is guessed, and
kohya's underscores need not be turned back into dots.

| file | spelling of a layer |
|---|---|
| diffusers, PEFT | ``unet.``, ``transformer.``, ``base_model.model.`` + diffusers' name; older ``processor.to_q`` |
| kohya | ``lora_unet_`` + the original or diffusers' name, dots as underscores; ``lora_transformer_`` + diffusers' |
| ComfyUI | ``diffusion_model.`` + the original (or diffusers') name |
| XLabs | the original block's processor, ``double_blocks.0.processor.qkv_lora1`` |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from svdq_trt.lora.flux_names import flux_original_names, xlabs_names
from svdq_trt.lora.unet_names import unet_original_name
from svdq_trt.models import ModelSpec

#: tensors that belong to a text encoder, which is not part of the engine, or embeddings of words (OneTrainer's bundles)
TEXT_ENCODER = re.compile(
    r"(lora_te\d?_|lora_(clip|t5)|text_encoders?[._0-9]|te\d?\.|conditioner\.|cond_stage_model\.|bundle_emb\.).*"
    r"|(clip_[lg]|t5|t5xxl|emb_params)(\..*)?"
)
_DOTTED = (
    "",
    "unet.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
    "base_model.model.unet.",
)
_UNDERSCORED = ("lora_unet_", "lora_transformer_")


@dataclass(frozen=True)
class Target:
    """Rows `source` to `source + rows` of a LoRA's up factor act on rows `start` to `start + rows` of `layer`."""

    layer: str
    start: int
    source: int
    rows: int


Names = dict[str, tuple[Target, ...]]


def name_table(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Names:
    """The table: every spelling of every layer -> its meaning.

    Args:
        spec: the model. shapes: weight shape [N, K] or [N, C, kh, kw] of each linear and convolution by
            diffusers' name.
    """
    table: Names = {}
    for name, targets in _plain_names(spec, shapes):
        for prefix in _DOTTED:
            table.setdefault(prefix + name, targets)
        for prefix in _UNDERSCORED:
            table.setdefault(prefix + name.replace(".", "_"), targets)
    return table


def _plain_names(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[Target, ...]]]:
    """The table for names without prefix; diffusers' own come first and win."""
    rows = {layer: shape[0] for layer, shape in shapes.items()}
    for layer, n in rows.items():
        yield layer, (Target(layer, 0, 0, n),)
    for layer, n in rows.items():
        parent, _, leaf = layer.rpartition(".to_")
        if parent:  # the name of the attention processor that once held the LoRA; to_out had no number then
            yield f"{parent}.processor.to_{leaf.removesuffix('.0')}", (Target(layer, 0, 0, n),)
            yield f"{parent}.to_{leaf.removesuffix('.0')}", (Target(layer, 0, 0, n),)
    architecture = spec.class_path.rpartition(":")[2]
    if architecture == "UNet2DConditionModel":
        for layer, n in rows.items():
            original = unet_original_name(layer, rows, spec.config["layers_per_block"])
            if original:
                yield original, (Target(layer, 0, 0, n),)
    elif architecture == "FluxTransformer2DModel":
        for original, parts in (*flux_original_names(rows), *xlabs_names(rows)):
            yield original, tuple(Target(layer, start, source, n) for layer, start, source, n in parts)
