"""The folder of a published pipeline without its weights: index, configurations, tokenizers of single letters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdq_trt.models import get_model
from svdq_trt.models.pipelines import KINDS, TOKENIZERS
from tests.harness import tiny_encoders

#: of the letters' tokenizer, which has these two words last
_CLIP_WORDS = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53, "vocab_size": 49408}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
_FLUX_VAE = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True}
_EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}

#: model -> class of its pipeline; component -> class and configuration, None where the denoiser's or a tokenizer's
PIPELINES: dict[str, tuple[str, dict[str, tuple[str, Mapping[str, Any] | None]]]] = {
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "unet": ("UNet2DConditionModel", None),
            "text_encoder": ("CLIPTextModel", _CLIP_WORDS | _CLIP_L),
            "text_encoder_2": (
                "CLIPTextModelWithProjection",
                _CLIP_WORDS | _CLIP_G | {"hidden_act": "gelu", "projection_dim": 1280},
            ),
            "tokenizer": ("CLIPTokenizer", None),
            "tokenizer_2": ("CLIPTokenizer", None),
            "vae": ("AutoencoderKL", _VAE | {"scaling_factor": 0.13025, "force_upcast": True}),
            "scheduler": ("EulerDiscreteScheduler", _EULER | {"steps_offset": 1}),
        },
    ),
    "flux1-dev": (
        "FluxPipeline",
        {
            "transformer": ("FluxTransformer2DModel", None),
            "text_encoder": ("CLIPTextModel", _CLIP_WORDS | _CLIP_L),
            "text_encoder_2": ("T5EncoderModel", get_model("t5-xxl").config),
            "tokenizer": ("CLIPTokenizer", None),
            "tokenizer_2": ("T5Tokenizer", None),
            "vae": ("AutoencoderKL", _VAE | _FLUX_VAE | {"use_quant_conv": False, "use_post_quant_conv": False}),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        },
    ),
}


def write(model: str, folder: Path) -> None:
    """Write the folder of `model`, one of PIPELINES: the published sizes, in files of kilobytes."""
    name, components = PIPELINES[model]
    index: dict[str, Any] = {"_class_name": name}
    for component, (class_name, config) in components.items():
        own = folder / component
        own.mkdir(parents=True, exist_ok=True)
        library = "transformers" if class_name in _OF_TRANSFORMERS else "diffusers"
        index[component] = [library, class_name]
        if class_name == "T5Tokenizer":
            tiny_encoders.t5_tokenizer(own)
        elif class_name == "CLIPTokenizer":
            tiny_encoders.tokenizer(own)[0].save_pretrained(own)
        else:
            given = get_model(model).config if component == KINDS[name].denoiser else config
            file = "scheduler_config.json" if component == "scheduler" else "config.json"
            named = {"_class_name": class_name} if library == "diffusers" else {}
            (own / file).write_text(json.dumps(named | dict(given or {}), default=list))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


_OF_TRANSFORMERS = (*TOKENIZERS, "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
