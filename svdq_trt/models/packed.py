"""What transformers on packed latents have in common: a token for 16 x 16 pixels, text beside them, bfloat16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from svdq_trt.models.spec import Axis, ModelSpec, TensorIO
from svdq_trt.models.synthetic import PATCH

BATCH, TEXT = Axis("batch"), Axis("tokens")
IMAGE = Axis("height", divisor=PATCH * PATCH, by=("width",))
#: with the tokens of reference images behind the new one's
IMAGES = Axis("height", divisor=PATCH * PATCH, by=("width", "images"))

TIMESTEP = TensorIO("timestep", "float32", (BATCH,))
GUIDANCE = TensorIO("guidance", "float32", (BATCH,))


def text_input(config: Mapping[str, Any]) -> TensorIO:
    """Text [B, tokens, K] of a model that names its width `joint_attention_dim`."""
    return TensorIO("encoder_hidden_states", "act", (BATCH, TEXT, config["joint_attention_dim"]))


def positions(image: Axis, numbers: int = 3) -> tuple[TensorIO, TensorIO]:
    """Positions of the image's and of the text's tokens, each of so many numbers."""
    return TensorIO("img_ids", "float32", (image, numbers)), TensorIO("txt_ids", "float32", (TEXT, numbers))


def packed_spec(
    class_path: str,
    config: dict[str, Any],
    image: Axis,
    inputs: Sequence[TensorIO],
    *,
    outputs: Sequence[TensorIO] = (),
    out_channels: int | None = None,
    **own: Any,
) -> ModelSpec:
    """The spec of such a model.

    Args:
        image: IMAGE or IMAGES. inputs: those behind hidden_states.
        outputs: where they are others than image tokens. out_channels: channels of the output where they are not those
            of the input.
        own: the other fields.
    """
    channels = config["in_channels"]
    return ModelSpec(
        class_path=class_path,
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=PATCH,
        calibration_pixels=256,
        inputs=(TensorIO("hidden_states", "act", (BATCH, image, channels)), *inputs),
        outputs=tuple(outputs) or (TensorIO("out_hidden_states", "act", (BATCH, image, out_channels or channels)),),
        **own,
    )
