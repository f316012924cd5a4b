"""The parts of small diffusers pipelines with random weights, around the tiny twins' denoisers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def tokenizer(folder: Path):
    """CLIP's tokenizer over single letters."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77), len(words)


def clip_config(size: int, hidden: int, projection: int):
    """A CLIP text encoder's config over `size` words."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=size,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def vae():
    """An autoencoder with 4 latent channels, 8 pixels a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
    )


def sdxl_parts(folder: Path) -> dict:
    """A pipeline's components around sdxl-tiny's UNet: 64 + 64 text channels, 64 pooled, 4 latent channels."""
    from diffusers import EulerDiscreteScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    words, size = tokenizer(folder)
    config, autoencoder = clip_config(size, 64, 64), vae()
    found = {"text_encoder": CLIPTextModel(config), "text_encoder_2": CLIPTextModelWithProjection(config)}
    found |= {"vae": autoencoder}
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return {k: m.half().eval() for k, m in found.items()} | {
        "tokenizer": words,
        "tokenizer_2": words,
        "scheduler": scheduler,
    }


def sd3_parts(folder: Path) -> dict:
    """Around sd3-tiny's transformer: 24 + 24 pooled channels, no T5, which the pipeline then replaces by zeros."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    words, size = tokenizer(folder)
    encoders = [CLIPTextModelWithProjection(clip_config(size, 32, 24)).bfloat16().eval() for _ in range(2)]
    return {
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
        "text_encoder_3": None,
        "tokenizer": words,
        "tokenizer_2": words,
        "tokenizer_3": None,
        "vae": vae().bfloat16().eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
