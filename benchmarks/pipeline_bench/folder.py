"""The folder of a published pipeline without its weights: index, configurations, tokenizers of single letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
_FLUX_VAE = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
#: of 32 channels, 32 pixels a side; further sizes are those of the class
_DC_VAE = {
    **{f"{half}_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3 for half in ("encoder", "decoder")},
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
_GEMMA_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256}
_GEMMA_2B |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000, "sliding_window": 4096}
_QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}
#: Mistral Small 3.1, without its vision tower
_MISTRAL_24B = {
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "rope_theta": 1e9,
    "sliding_window": None,
}
_QWEN2_5_VL_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584},
}
_EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}


def _clip_tokenizer(folder: Path) -> None:
    tiny_encoders.tokenizer(folder)[0].save_pretrained(folder)


#: model -> class of its pipeline; component -> class and configuration, None where the denoiser's; what writes it where
#: a tokenizer
PIPELINES: dict[str, tuple[str, dict[str, tuple[str, Mapping[str, Any] | Callable[[Path], Any] | None]]]] = {
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "unet": ("UNet2DConditionModel", None),
            "text_encoder": ("CLIPTextModel", _CLIP_WORDS | _CLIP_L),
            "text_encoder_2": (
                "CLIPTextModelWithProjection",
                _CLIP_WORDS | _CLIP_G | {"hidden_act": "gelu", "projection_dim": 1280},
            ),
            "tokenizer": ("CLIPTokenizer", _clip_tokenizer),
            "tokenizer_2": ("CLIPTokenizer", _clip_tokenizer),
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
            "tokenizer": ("CLIPTokenizer", _clip_tokenizer),
            "tokenizer_2": ("T5Tokenizer", tiny_encoders.t5_tokenizer),
            "vae": ("AutoencoderKL", _VAE | _FLUX_VAE),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        },
    ),
    "flux2-klein-4b": (
        "Flux2KleinPipeline",
        {
            "transformer": ("Flux2Transformer2DModel", None),
            "text_encoder": ("Qwen3ForCausalLM", _QWEN3_4B),
            "tokenizer": ("Qwen2Tokenizer", tiny_encoders.qwen_tokenizer),
            "vae": ("AutoencoderKLFlux2", {}),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        },
    ),
    "flux2-dev": (
        "Flux2Pipeline",
        {
            "transformer": ("Flux2Transformer2DModel", None),
            "text_encoder": ("Mistral3ForConditionalGeneration", {"text_config": _MISTRAL_24B}),
            "tokenizer": ("PixtralProcessor", tiny_encoders.mistral_tokenizer),
            "vae": ("AutoencoderKLFlux2", {}),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        },
    ),
    "z-image-turbo": (
        "ZImagePipeline",
        {
            "transformer": ("ZImageTransformer2DModel", None),
            "text_encoder": ("Qwen3Model", _QWEN3_4B),
            "tokenizer": ("Qwen2Tokenizer", tiny_encoders.qwen_tokenizer),
            "vae": ("AutoencoderKL", _VAE | _FLUX_VAE),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        },
    ),
    "sana-1.6b": (
        "SanaPipeline",
        {
            "transformer": ("SanaTransformer2DModel", None),
            "text_encoder": ("Gemma2Model", _GEMMA_2B),
            "tokenizer": ("GemmaTokenizer", tiny_encoders.gemma_tokenizer),
            "vae": ("AutoencoderDC", _DC_VAE),
            "scheduler": (
                "DPMSolverMultistepScheduler",
                {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
            ),
        },
    ),
    "qwen-image": (
        "QwenImagePipeline",
        {
            "transformer": ("QwenImageTransformer2DModel", None),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration", _QWEN2_5_VL_7B),
            "tokenizer": ("Qwen2Tokenizer", tiny_encoders.qwen_image_tokenizer),
            "vae": ("AutoencoderKLQwenImage", {}),
            "scheduler": (
                "FlowMatchEulerDiscreteScheduler",
                {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
            ),
        },
    ),
}
#: model -> the pipeline's own settings
_SETTINGS = {"flux2-klein-4b": {"is_distilled": True}}


def write(model: str, folder: Path) -> None:
    """Write the folder of `model`, one of PIPELINES: the published sizes, in files of kilobytes."""
    name, components = PIPELINES[model]
    index: dict[str, Any] = {"_class_name": name} | _SETTINGS.get(model, {})
    for component, (class_name, config) in components.items():
        own = folder / component
        own.mkdir(parents=True, exist_ok=True)
        library = "transformers" if class_name in TOKENIZERS or component.startswith("text_encoder") else "diffusers"
        index[component] = [library, class_name]
        if callable(config):
            config(own)
        else:
            given = get_model(model).config if component == KINDS[name].denoiser else config
            file = "scheduler_config.json" if component == "scheduler" else "config.json"
            named = {"_class_name": class_name} if library == "diffusers" else {}
            (own / file).write_text(json.dumps(named | dict(given or {}), default=list))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
