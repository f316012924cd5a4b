"""Wan 2.2: TI2V 5B, the two experts of T2V A14B, and a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.family import Family
from svdq_trt.models.positions import GridRotary, Rotary
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.special_attention import AcrossHeadsAttention
from svdq_trt.models.synthetic import Request, normal, smooth_image, t5_text

_PATCH = (1, 2, 2)  # frames, rows and columns of the latents in a token

#: config.json of the published transformers, without diffusers' bookkeeping keys. Both experts of A14B have this one.
A14B_CONFIG: dict[str, Any] = {
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "image_dim": None,
    "in_channels": 16,
    "num_attention_heads": 40,
    "num_layers": 40,
    "out_channels": 16,
    "patch_size": _PATCH,
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": 4096,
}
TI2V_5B_CONFIG: dict[str, Any] = A14B_CONFIG | {
    "ffn_dim": 14336,
    "in_channels": 48,
    "num_attention_heads": 24,
    "num_layers": 30,
    "out_channels": 48,
}

#: Two blocks; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = A14B_CONFIG | {
    "attention_head_dim": 64,
    "ffn_dim": 512,
    "in_channels": 4,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 4,
    "text_dim": 96,
}


def _latents(r: Request) -> torch.Tensor:
    """[B, C, F, H, W]: a smooth image that moves by a pixel a frame, and noise, mixed as in flow matching."""
    value = normal(r)
    b, c, frames, h, w = r.shape
    image = smooth_image((b, c, h, w), r.rng, step=4)
    video = torch.stack([image.roll(frame, dims=-1) for frame in range(frames)], dim=2)
    return r.noise * value + (1 - r.noise) * video


def _padded_text(r: Request) -> torch.Tensor:
    """[B, T, K], whose last third is zero, as the pipelines pad it."""
    value = t5_text(r)
    value[:, r.shape[1] - r.shape[1] // 3 :] = 0.0
    return value


def _forward(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """WanTransformer3DModel.forward with a timestep, and so a modulation, for each frame.

    Shapes: video [B, C, F, H, W], timestep [B, F], text [B, T, K].
    """
    batch = hidden_states.shape[0]
    rotary = model.rope.of(hidden_states)
    x = model.patch_embedding(hidden_states)
    frames, rows, columns = x.shape[2:]
    x = x.flatten(3).permute(0, 2, 3, 1)
    embedder = model.condition_embedder
    waves = embedder.timesteps_proj(timestep.flatten()).unflatten(0, (batch, frames))
    time = embedder.time_embedder(waves).type_as(encoder_hidden_states)
    modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(2, (6, -1))
    text = embedder.text_embedder(encoder_hidden_states)
    for block in model.blocks:
        x = block(x, text, modulation, rotary)
    shift, scale = (model.scale_shift_table + time[:, :, None].float()).chunk(2, dim=2)
    x = (model.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
    x = model.proj_out(x)
    x = x.reshape(batch, frames, rows, columns, *model.config.patch_size, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return (x.flatten(6, 7).flatten(4, 5).flatten(2, 3),)


def _block_forward(
    block: Any, x: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rotary: Rotary
) -> torch.Tensor:
    """WanTransformerBlock.forward with modulation [B, F, 6, C] per frame: x [B, F, P, C] -> the same."""
    table = block.scale_shift_table + modulation.float()
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table.chunk(6, dim=2)
    normed = (block.norm1(x.float()) * (1 + scale) + shift).type_as(x)
    attended = block.attn1(normed.flatten(1, 2), rotary_emb=rotary).view_as(x)
    x = (x.float() + attended * gate).type_as(x)
    normed = block.norm2(x.float()).type_as(x)
    x = x + block.attn2(normed.flatten(1, 2), text).view_as(x)
    normed = (block.norm3(x.float()) * (1 + mlp_scale) + mlp_shift).type_as(x)
    hidden = block.ffn(normed.flatten(1, 2)).view_as(x)
    out: torch.Tensor = (x.float() + hidden.float() * mlp_gate).type_as(x)
    return out


class WanFamily(Family):
    """WanTransformer3DModel: self and cross attention, GELU MLP, one adaLN for all blocks, a timestep for each frame.

    The pipelines give one timestep, or one for each token that is equal within a frame: where a video continues an
    image, its first frame has no noise. With one per frame the modulation has a row for each frame, not for each of the
    tens of thousands of tokens.
    """

    processors = ((r"blocks\.\d+\.attn[12]", AcrossHeadsAttention),)
    synthetic = (
        ("hidden_states", _latents),
        ("encoder_hidden_states", _padded_text),
        ("timestep", lambda r: torch.full(r.shape, 1000.0 * r.noise)),
    )
    forward = staticmethod(_forward)

    def prepare(self, module: Any) -> None:
        """Compute positions in the graph."""
        rope = module.rope
        module.rope = GridRotary(10000.0, (rope.t_dim, rope.h_dim, rope.w_dim), tuple(rope.patch_size))

    def wrap(self, module: nn.Module, inputs: Any) -> nn.Module:
        """Wrap the module as Family does, with modulation per frame."""
        net: Any = module
        for block in net.blocks:
            block.forward = MethodType(_block_forward, block)
        return super().wrap(module, inputs)

    def arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments of the transformer: the timestep of each token, as its own forward takes them."""
        per_frame = _tokens_per_frame(inputs["hidden_states"])
        return inputs | {"timestep": inputs["timestep"][:, :, None].expand(-1, -1, per_frame).flatten(1)}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Inputs by name: the timestep of each frame, of one for all or of each token's.

        Raises:
            UnsupportedError: tokens of a frame that differ in their timesteps.
        """
        video, time = call["hidden_states"], torch.as_tensor(call["timestep"])
        if time.ndim < 2:
            return call | {"timestep": time.reshape(-1, 1).expand(len(video), video.shape[2])}
        time = time.unflatten(1, (-1, _tokens_per_frame(video)))
        if not (time == time[:, :, :1]).all():
            raise UnsupportedError("timestep", "tokens of a frame that differ", "one timestep for each latent frame")
        return call | {"timestep": time[:, :, 0]}


def _tokens_per_frame(video: torch.Tensor) -> int:
    """Tokens of one frame of latents [B, C, F, H, W]."""
    rows, columns = _PATCH[1:]
    return (video.shape[-2] // rows) * (video.shape[-1] // columns)


def _spec(config: dict[str, Any], *, vae: int, **own: Any) -> ModelSpec:
    """The spec of a model whose latent pixel is `vae` x `vae` pixels of 4 frames; the first frame stands alone."""
    batch, text, frames = Axis("batch"), Axis("tokens"), Axis("frames", divisor=4, first=1)
    height, width = (Axis(side, divisor=vae, multiple=2) for side in ("height", "width"))
    return ModelSpec(
        class_path="diffusers.models.transformers.transformer_wan:WanTransformer3DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=2 * vae,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], frames, height, width)),
            TensorIO("timestep", "float32", (batch, frames)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["text_dim"])),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], frames, height, width)),),
        family=WanFamily(),
        **own,
    )


_TEXT = (512, 512, 512)

WAN22_TI2V_5B = _spec(
    TI2V_5B_CONFIG,
    vae=16,
    name="wan2.2-ti2v-5b",
    title="Wan 2.2 TI2V 5B, video from text or an image",
    hub_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    profile=Profile(
        batch=(1, 1, 1), height=(480, 704, 1280), width=(480, 1280, 1280), tokens=_TEXT, frames=(1, 121, 121)
    ),
    calibration_pixels=256,
    parameters=4_999_787_712,
    twin="wan-tiny",
)

_A14B = Profile(batch=(1, 1, 1), height=(480, 720, 1280), width=(480, 1280, 1280), tokens=_TEXT, frames=(1, 81, 81))

#: The expert for the first steps, of much noise.
WAN22_T2V_A14B_HIGH = _spec(
    A14B_CONFIG,
    vae=8,
    name="wan2.2-t2v-a14b-high",
    title="Wan 2.2 T2V A14B, the expert for much noise",
    hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    profile=_A14B,
    calibration_pixels=128,
    parameters=14_288_491_584,
    twin="wan-tiny",
)

#: The expert for the last steps, which pipelines have as another component.
WAN22_T2V_A14B_LOW = _spec(
    A14B_CONFIG,
    vae=8,
    name="wan2.2-t2v-a14b-low",
    title="Wan 2.2 T2V A14B, the expert for little noise",
    hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    subfolder="transformer_2",
    profile=_A14B,
    calibration_pixels=128,
    parameters=14_288_491_584,
    twin="wan-tiny",
)

WAN_TINY = _spec(
    TINY_CONFIG,
    vae=8,
    name="wan-tiny",
    title="Wan's structure at 128 channels, for trials and tests",
    profile=Profile(
        batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16), frames=(1, 9, 17)
    ),
    calibration_pixels=128,
    parameters=712_592,
)
