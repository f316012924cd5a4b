"""Text-to-image pipelines of diffusers to train: their parts, and the loss of their denoisers.

Each encodes a caption as its diffusers pipeline does. Text encoders and denoiser learn together; the autoencoder is
trained before, and stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svdq_trt.models import get_model
from svdq_trt.models.flux import image_ids
from trained import captions
from trained.tasks import FluxTask
from trained.words import CLIP_TOKENS, LAST, T5_TOKENS, clip_tokenizer, t5_tokenizer


class Pipeline(Protocol):
    """A pipeline to train.

    Attributes:
        name: of its folder. denoiser: the component that is quantized. encoders: those that learn with it.
        dtype: what it is saved in. guidance: the scale of it that pictures are made with.
        empty: share of captions left empty in training: guidance that compares with an empty prompt needs them.
        lora: names of linears that a LoRA changes. asked: keywords of its call beside those of every pipeline.
    """

    name: str
    denoiser: str
    encoders: tuple[str, ...]
    dtype: torch.dtype
    guidance: float
    empty: float
    lora: tuple[str, ...]
    asked: Mapping[str, Any]

    def make(self, vae: nn.Module) -> Any:
        """The pipeline around a trained autoencoder; the other weights are random, f32."""

    def tokens(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """What the text encoders read, each [texts, tokens]."""

    def loss(self, pipe: Any, latents: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """The denoiser's for latents [B, 4, SIDE/8, SIDE/8] and their captions; waits for nothing."""


class SDXL(Pipeline):
    """sdxl-tiny's UNet, and two CLIP text encoders. It learns v of DDPM's noise.

    The noise itself, SDXL's target, gives next to no weight to the noisiest steps, which decide what is where.
    """

    name, denoiser, encoders = "sdxl-shapes", "unet", ("text_encoder", "text_encoder_2")
    dtype, guidance, empty = torch.float16, 3.0, 0.1
    lora = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    asked: Mapping[str, Any] = MappingProxyType({})

    def make(self, vae: nn.Module) -> Any:
        """StableDiffusionXLPipeline."""
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        spec, words = get_model("sdxl-tiny"), clip_tokenizer(captions.WORDS)
        text = clip_config(len(words), width=64, projection=64)
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=louder(CLIPTextModel(text)),
            text_encoder_2=louder(CLIPTextModelWithProjection(text)),
            tokenizer=words,
            tokenizer_2=words,
            unet=spec.model_class()(**spec.config),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                prediction_type="v_prediction",
                timestep_spacing="trailing",
            ),
            force_zeros_for_empty_prompt=False,
        )

    def tokens(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """One for both encoders, whose tokenizers are the same."""
        return (padded(pipe.tokenizer, texts, CLIP_TOKENS),)

    def encode(self, pipe: Any, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Text [B, 77, 128] and pooled text [B, 64]."""
        first, second = (
            encoder(tokens[0], output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)
        )
        return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), -1), second[0]

    def loss(self, pipe: Any, latents: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """Of v = alpha * noise - sigma * latents, at a random step."""
        device, batch = latents.device, len(latents)
        t = torch.randint(1000, (batch,), device=device)
        alpha2: Tensor = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
        alpha, sigma, noise = alpha2.sqrt(), (1 - alpha2).sqrt(), torch.randn_like(latents)
        text, pooled = self.encode(pipe, tokens)
        given = {"text_embeds": pooled, "time_ids": sizes(captions.SIDE, device).expand(batch, 6)}
        got: Tensor = pipe.unet(alpha * latents + sigma * noise, t, text, added_cond_kwargs=given, return_dict=False)[0]
        return (got.float() - (alpha * noise - sigma * latents)).square().mean()


class Flux(Pipeline):
    """The wider flux1-tiny of tasks.py, with CLIP and T5. It learns the velocity of the straight path."""

    name, denoiser, encoders = "flux1-shapes", "transformer", ("text_encoder", "text_encoder_2")
    dtype, guidance, empty = torch.bfloat16, 3.5, 0.0
    lora = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_k_proj",
        "add_q_proj",
        "add_v_proj",
        "to_add_out",
        "proj_mlp",
        "proj_out",
    )
    asked: Mapping[str, Any] = MappingProxyType({"max_sequence_length": T5_TOKENS})
    spec = FluxTask().spec

    def make(self, vae: nn.Module) -> Any:
        """FluxPipeline."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
        from transformers import CLIPTextModel, T5Config, T5EncoderModel

        spec, words, pieces = self.spec, clip_tokenizer(captions.WORDS), t5_tokenizer(captions.WORDS)
        text = T5Config(
            vocab_size=len(pieces),
            d_model=spec.config["joint_attention_dim"],
            d_kv=16,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        pooled = spec.config["pooled_projection_dim"]
        return FluxPipeline(
            vae=vae,
            text_encoder=louder(CLIPTextModel(clip_config(len(words), width=pooled, projection=pooled))),
            text_encoder_2=T5EncoderModel(text),
            tokenizer=words,
            tokenizer_2=pieces,
            transformer=spec.model_class()(**spec.config),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )

    def tokens(self, pipe: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """CLIP's and T5's."""
        return padded(pipe.tokenizer, texts, CLIP_TOKENS), padded(pipe.tokenizer_2, texts, T5_TOKENS)

    def encode(self, pipe: Any, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Text [B, 16, 96] and pooled text [B, 48]."""
        return pipe.text_encoder_2(tokens[1])[0], pipe.text_encoder(tokens[0]).pooler_output

    def loss(self, pipe: Any, latents: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """Of noise - latents, at a random step."""
        device, batch = latents.device, len(latents)
        side, latents = latents.shape[-1] // 2, pipe._pack_latents(latents, *latents.shape)
        noise, t = torch.randn_like(latents), torch.rand(batch, device=device)
        text, pooled = self.encode(pipe, tokens)
        got: Tensor = pipe.transformer(
            hidden_states=torch.lerp(latents, noise, t[:, None, None]),
            timestep=t,
            guidance=torch.full((batch,), self.guidance, device=device),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            img_ids=positions(side, device),
            return_dict=False,
        )[0]
        return (got.float() - (noise - latents)).square().mean()


@functools.cache
def sizes(side: int, device: torch.device) -> Tensor:
    """SDXL's size, corner and target of a picture, [6]."""
    return torch.tensor((side, side, 0, 0, side, side), dtype=torch.float32, device=device)


@functools.cache
def positions(side: int, device: torch.device) -> Tensor:
    """Positions of image tokens, so many a side."""
    return image_ids(side, side).to(device)


def louder(encoder: nn.Module) -> nn.Module:
    """CLIP's encoder with embeddings of half a unit: from its 0.02 a short training learns little."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("embedding.weight"):
            parameter.data *= 25
    return encoder


def clip_config(words: int, width: int, projection: int) -> Any:
    """A CLIP text encoder's, over so many words, of which LAST are the last."""
    from transformers import CLIPTextConfig

    begin, end = words - len(LAST), words - 1
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=words,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=projection,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
    )


def padded(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """[texts, length], as the pipelines ask for."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


PIPELINES: dict[str, Pipeline] = {kind.name: kind for kind in (SDXL(), Flux())}
