"""Small configurations of diffusers classes that no file of ours names, and folders of their pipelines."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch

from svdq_trt.models.probe import pipeline_of

_FLUX_LIKE: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "axes_dims_rope": (8, 28, 28),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "ChromaTransformer2DModel": _FLUX_LIKE
    | {"approximator_num_channels": 64, "approximator_hidden_dim": 128, "approximator_layers": 2},
    "OvisImageTransformer2DModel": _FLUX_LIKE | {"out_channels": 16},
    "LongCatImageTransformer2DModel": _FLUX_LIKE | {"pooled_projection_dim": 96},
    "AuraFlowTransformer2DModel": {
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "joint_attention_dim": 96,
        "caption_projection_dim": 128,
        "pos_embed_max_size": 1024,
    },
    "CogView4Transformer2DModel": {
        "num_layers": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "text_embed_dim": 96,
        "time_embed_dim": 128,
        "condition_dim": 64,
        "rope_axes_dim": (64, 64),
    },
    "ErnieImageTransformer2DModel": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 256,
        "in_channels": 32,
        "out_channels": 32,
        "text_in_dim": 96,
        "rope_axes_dim": (16, 24, 24),
    },
    "PRXTransformer2DModel": {
        "in_channels": 4,
        "context_in_dim": 96,
        "hidden_size": 128,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [32, 32],
    },
    "HunyuanImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 96,
        "text_embed_2_dim": 80,
        "rope_axes_dim": (32, 32),
    },
    "Ideogram4Transformer2DModel": {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "adaln_dim": 64,
        "llm_features_dim": 96,
        "mrope_section": (8, 12, 12),
    },
    "Lumina2Transformer2DModel": {
        "in_channels": 4,
        "hidden_size": 128,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 64,
        "axes_dim_rope": (16, 24, 24),
        "cap_feat_dim": 96,
    },
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "caption_channels": [96, 80],
        "text_emb_dim": 72,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (16, 24, 24),
        "llama_layers": [0, 1],
    },
    "PixArtTransformer2DModel": {
        "num_layers": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "cross_attention_dim": 128,
        "caption_channels": 96,
        "sample_size": 64,
        "use_additional_conditions": False,
    },
    "SanaVideoTransformer3DModel": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 64,
        "cross_attention_dim": 128,
        "caption_channels": 96,
    },
    "SkyReelsV2Transformer3DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "text_dim": 96,
        "freq_dim": 64,
        "ffn_dim": 256,
    },
    "BriaTransformer2DModel": _FLUX_LIKE,
    "HunyuanDiT2DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "num_layers": 2,
        "hidden_size": 128,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
    },
    "UNet2DConditionModel": {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 96},
}


def denoiser(name: str) -> Any:
    """A module of the class with random weights."""
    torch.manual_seed(0)
    return getattr(diffusers, name)(**CONFIGS[name]).eval().requires_grad_(False)


def pipeline(name: str, module: Any) -> Any:
    """The class's pipeline around a module, without text encoders and autoencoder."""
    made, component = pipeline_of(type(module))
    cls = getattr(diffusers, made)
    known = inspect.signature(cls.__init__).parameters
    parts = {name: None for name, p in known.items() if p.default is p.empty and name != "self"}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = cls(**parts | {component: module, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(pipe: Any, *texts: str, **more: Any) -> dict[str, Any]:
    """The arguments of a call for latents of 64 x 128 pixels, with random embeddings of 24 tokens as `texts`.

    And with masks and 9 frames where it takes them.
    """
    known = inspect.signature(pipe.__call__).parameters
    found: dict[str, Any] = {"height": 64, "width": 128, "output_type": "latent", **more}
    options = {"use_resolution_binning": False, "num_frames": 9}
    found |= {name: value for name, value in options.items() if name in known}
    for name in texts:
        text, mask = torch.randn(1, 24, 96), name.replace("embeds", "attention_mask")
        found[name] = list(text) if "list" in str(known[name].annotation).lower() else text
        found |= {mask: torch.ones(1, 24, dtype=torch.bool)} if mask in known else {}
    return found


def save_config(name: str, folder: Path) -> Path:
    """A folder of the denoiser alone, with its configuration and no weights."""
    with torch.device("meta"):
        getattr(diffusers, name)(**CONFIGS[name]).save_config(folder)
    return folder


def save(name: str, folder: Path) -> Path:
    """A folder of the class's pipeline, with random weights in bfloat16."""
    module = denoiser(name)
    torch.nn.Module.to(module, torch.bfloat16)
    pipeline(name, module).save_pretrained(folder)
    return folder
