"""The parts of small diffusers pipelines with random weights, around the tiny twins' denoisers.

`python -m tests.harness.tiny_pipelines FOLDER` writes one around sdxl-tiny: what `make demo` builds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from svdq_trt.models import ModelSpec, get_model
from tests.harness.tiny_encoders import clip_config, gemma_tokenizer, mistral3, qwen2_5_vl, qwen3, t5, tokenizer


def vae() -> Any:
    """An autoencoder with 4 latent channels, 8 pixels a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **vae_levels(4),
        latent_channels=4,
        norm_num_groups=8,
        shift_factor=0.1,
        sample_size=128,
    )


def vae_levels(levels: int) -> dict[str, Any]:
    """What an autoencoder's config says of its levels, of which each but the first halves the sides."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return {"block_out_channels": [32] * levels} | blocks


def frame_vae() -> Any:
    """An autoencoder for videos, of which pictures are first frames: 4 latent channels, 8 pixels a side."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4)


def sdxl_parts(folder: Path) -> dict[str, Any]:
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


def sd3_parts(folder: Path) -> dict[str, Any]:
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


def flux_parts(folder: Path, **config: Any) -> dict[str, Any]:
    """Around flux1-tiny's transformer: 48 pooled channels of CLIP, 96 of T5 or what its `config` says, 4 latent."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    words, size = tokenizer(folder)
    pieces, encoder = t5(folder / "t5", **config)
    return {
        "text_encoder": CLIPTextModel(clip_config(size, 48, 48)).bfloat16().eval(),
        "text_encoder_2": encoder.bfloat16(),
        "tokenizer": words,
        "tokenizer_2": pieces,
        "vae": vae().bfloat16().eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def chroma_parts(folder: Path) -> dict[str, Any]:
    """Around chroma-tiny's transformer: 96 channels of T5, 4 latent channels."""
    torch.manual_seed(0)
    return _flow_match(*t5(folder / "t5"), vae())


def z_image_parts(folder: Path) -> dict[str, Any]:
    """Around z-image-tiny's transformer: 96 channels of a language model, 4 latent channels."""
    torch.manual_seed(0)
    return _flow_match(*qwen3(folder / "qwen", "Qwen3Model"), vae(), shift=3.0)


def klein_parts(folder: Path, channels: int = 32) -> dict[str, Any]:
    """Around FLUX.2 klein's transformer: text of three states of so many channels, as of layers 9, 18 and 27."""
    torch.manual_seed(0)
    return _flux2(*qwen3(folder / "qwen", "Qwen3ForCausalLM", channels, layers=28))


def flux2_parts(folder: Path) -> dict[str, Any]:
    """Around flux2-tiny's transformer: text of three states of 32 channels each, as of layers 10, 20 and 30."""
    torch.manual_seed(0)
    return _flux2(*mistral3(folder / "mistral", channels=32, layers=31))


def _flux2(words: Any, encoder: Any) -> dict[str, Any]:
    """The components of a pipeline of FLUX.2."""
    from diffusers import AutoencoderKLFlux2

    autoencoder: Any = AutoencoderKLFlux2(block_out_channels=(32,) * 4, latent_channels=4, norm_num_groups=8)
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 4.0)
    return _flow_match(words, encoder, autoencoder, use_dynamic_shifting=True)


def qwen_image_parts(folder: Path) -> dict[str, Any]:
    """Around qwen-image-tiny's transformer: 96 channels of a language model, 4 latent channels."""
    torch.manual_seed(0)
    return _flow_match(*qwen2_5_vl(folder / "qwen"), frame_vae(), use_dynamic_shifting=True)


def _flow_match(words: Any, encoder: Any, autoencoder: Any, **schedule: Any) -> dict[str, Any]:
    """The components of a pipeline in bfloat16 with one text encoder; `schedule`: of its flow-match scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return {
        "text_encoder": encoder.bfloat16(),
        "tokenizer": words,
        "vae": autoencoder.bfloat16().eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**schedule),
    }


def pixart_parts(folder: Path) -> dict[str, Any]:
    """Around pixart-tiny's transformer: 96 channels of T5, 4 latent channels."""
    from diffusers import DPMSolverMultistepScheduler

    torch.manual_seed(0)
    pieces, encoder = t5(folder / "t5")
    return {
        "text_encoder": encoder.half(),
        "tokenizer": pieces,
        "vae": vae().half().eval(),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def deep_compression(levels: int) -> dict[str, Any]:
    """Config of an AutoencoderDC of blocks as in SANA's, with 8 latent channels, 2^(levels - 1) pixels a side."""
    rest = levels - 1
    config: dict[str, Any] = {"upsample_block_type": "interpolate", "downsample_block_type": "Conv"}
    for half in ("encoder", "decoder"):
        config |= {
            f"{half}_block_out_channels": [16, *[32] * rest],
            f"{half}_layers_per_block": [1] * levels,
            f"{half}_block_types": ["ResBlock"] * rest + ["EfficientViTBlock"],
            f"{half}_qkv_multiscales": [[]] * rest + [[5]],
        }
    return config | {"latent_channels": 8, "scaling_factor": 0.41407}


def sana_parts(folder: Path) -> dict[str, Any]:
    """Around sana-tiny's transformer: 96 channels of a language model, 8 latent channels, 32 pixels a side."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    words, size = gemma_tokenizer(folder / "gemma")
    own: dict[str, Any] = {"vocab_size": size, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2}
    own |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 64}
    autoencoder: Any = AutoencoderDC(**deep_compression(levels=6))
    return {
        "text_encoder": Gemma2Model(Gemma2Config(**own)).bfloat16().eval(),
        "tokenizer": words,
        "vae": autoencoder.bfloat16().eval(),
        "scheduler": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    }


def save(name: str, spec: ModelSpec, parts: dict[str, Any], folder: Path) -> None:
    """A diffusers pipeline's folder as users have it, by the pipeline's class, around a model's denoiser."""
    import diffusers

    torch.manual_seed(0)
    denoiser = spec.model_class()(**spec.config).to(spec.torch_dtype)
    save_whole(getattr(diffusers, name)(**{spec.subfolder: denoiser}, **parts), folder)


def save_whole(pipe: Any, folder: Path) -> None:
    """Save a pipeline as it is published: FLUX.2's tokenizer in a processor, which only torchvision makes."""
    pipe.save_pretrained(folder)
    if type(pipe).__name__ == "Flux2Pipeline":
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"][1] = "PixtralProcessor"
        (folder / "model_index.json").write_text(json.dumps(index))


def save_sdxl(folder: Path) -> None:
    """StableDiffusionXLPipeline around sdxl-tiny's UNet."""
    with tempfile.TemporaryDirectory() as words:
        save("StableDiffusionXLPipeline", get_model("sdxl-tiny"), sdxl_parts(Path(words)), folder)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int, mask: bool = False) -> Any:
    """A PIL image of random colours, or a mask whose right half is white."""
    import numpy as np
    from PIL import Image

    if mask:
        return Image.fromarray(np.where(np.arange(width) < width // 2, 0, 255).astype(np.uint8)[None].repeat(height, 0))
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def qwen(kind: str, transformer: Any) -> Any:
    """A pipeline of Qwen-Image, by its class, around qwen-image-tiny's transformer or its like: no text encoder."""
    import diffusers

    torch.manual_seed(0)
    autoencoder = frame_vae()
    nothing = dict.fromkeys(("text_encoder", "tokenizer", *(("processor",) if "Edit" in kind else ())))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, kind)(scheduler=scheduler, vae=autoencoder.eval(), transformer=transformer, **nothing)


def z_image(transformer: Any) -> Any:
    """ZImagePipeline around z-image-tiny's transformer: no text encoder."""
    import diffusers

    torch.manual_seed(0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.ZImagePipeline(scheduler, vae().eval(), None, None, transformer)


def flux(kind: str, transformer: Any, **more: Any) -> Any:
    """A pipeline of FLUX.1, by its class, around flux1-tiny's transformer or its like: no text encoders."""
    import diffusers

    torch.manual_seed(0)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, kind)(scheduler=scheduler, vae=vae().eval(), transformer=transformer, **nothing, **more)


def without_encoders(kind: str, autoencoder: Any, *absent: str, **parts: Any) -> Any:
    """A pipeline with flow matching, by its class, around a transformer: no text encoder, nor what else is `absent`."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    nothing = dict.fromkeys(("text_encoder", "tokenizer", *absent))
    return getattr(diffusers, kind)(scheduler=scheduler, vae=autoencoder.eval(), **nothing, **parts)


def flux2(kind: str, transformer: Any) -> Any:
    """A pipeline of FLUX.2, by its class, around flux2-tiny's transformer or its like."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    autoencoder = AutoencoderKLFlux2(block_out_channels=(32,) * 4, latent_channels=4, norm_num_groups=8)
    return without_encoders(kind, autoencoder, transformer=transformer)


def longcat(transformer: Any) -> Any:
    """LongCatImagePipeline around longcat-tiny's transformer; it has no argument for embeddings that works.

    Prompts of one length have the same embeddings.
    """
    torch.manual_seed(0)
    pipe = without_encoders("LongCatImagePipeline", vae(), "text_processor", transformer=transformer)
    pipe._encode_prompt = lambda prompts: random(len(prompts), 16, 96, seed=len(prompts[0]))
    return pipe


def krea2(transformer: Any) -> Any:
    """Krea2Pipeline around krea2-tiny's transformer."""
    torch.manual_seed(0)
    return without_encoders("Krea2Pipeline", frame_vae(), transformer=transformer)


def wan(kind: str, transformer: Any, **more: Any) -> Any:
    """A pipeline of Wan, by its class, around wan-tiny's transformer."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    autoencoder = AutoencoderKLWan(
        base_dim=16, z_dim=4, num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4
    )
    absent = ("image_encoder", "image_processor") if "Image" in kind else ()
    return without_encoders(kind, autoencoder, *absent, transformer=transformer, **more)


def sdxl(kind: str, unet: Any, **more: Any) -> Any:
    """A pipeline of SDXL, by its class, around sdxl-tiny's UNet or its like: no text encoders."""
    import diffusers

    torch.manual_seed(0)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    autoencoder = vae().eval()
    return getattr(diffusers, kind)(vae=autoencoder, unet=unet, scheduler=scheduler, **nothing, **more)


if __name__ == "__main__":
    save_sdxl(Path(sys.argv[1]))
