"""T5's encoder, v1.1 XXL, which FLUX.1, Stable Diffusion 3.5 and PixArt read prompts with; and a small one.

It is no denoiser: it is an engine by itself, or with ``--pipeline`` the text encoder of one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.models.family import Family
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import Request, padding_mask

#: config.json of the published encoder, as far as it decides what is computed.
XXL_CONFIG: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu",
}

#: Two blocks; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = XXL_CONFIG | {
    "vocab_size": 64,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
}


class _Gated(nn.Module):
    """T5DenseGatedActDense, without its look at the dtype of weights."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.wi_0, self.wi_1, self.wo = mlp.wi_0, mlp.wi_1, mlp.wo
        is_tanh = type(mlp.act).__name__ == "NewGELUActivation"  # the same, spelled out
        self.act = nn.GELU(approximate="tanh") if is_tanh else mlp.act

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        y: Tensor = self.wo(self.act(self.wi_0(x)) * self.wi_1(x))
        return y


class T5Family(Family):
    """T5EncoderModel: attention with a bias by distance, a GELU that gates, RMS norms before both."""

    synthetic = (("attention_mask", padding_mask),)

    def __init__(self, words: int) -> None:
        """`words`: the size of the vocabulary."""
        self._words = words

    def fill_input(self, name: str, request: Request) -> Tensor:
        """Any tokens for a text; the first three are none: padding, end, unknown."""
        if name != "input_ids":
            return super().fill_input(name, request)
        return torch.randint(3, self._words, request.shape, generator=request.rng)

    def prepare(self, module: Any) -> None:
        """One table of words, one operation for the activation, attention written out, no look at weights' dtypes."""
        module.encoder.embed_tokens = module.shared
        module.set_attn_implementation("eager")
        for block in module.encoder.block:
            block.layer[-1].DenseReluDense = _Gated(block.layer[-1].DenseReluDense)

    @staticmethod
    def forward(module: Any, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The last state [B, T, C]. The mask becomes what is added to scores: transformers would look at its values."""
        hidden = (1 - attention_mask)[:, None, None].to(module.dtype) * torch.finfo(module.dtype).min
        return (module.encoder(input_ids=input_ids, attention_mask=hidden).last_hidden_state,)


def _spec(config: dict[str, Any], tokens: int, **own: Any) -> ModelSpec:
    batch, text, one = Axis("batch"), Axis("tokens"), (1, 1, 1)
    return ModelSpec(
        library="transformers",
        variant="fp16",  # as PixArt's pipeline
        class_path="svdq_trt.models.t5_module:T5Encoder",
        config=MappingProxyType(config),
        act_dtype="bfloat16",  # its sums leave the range of f16
        pixel_multiple=1,
        calibration_pixels=1,
        profile=Profile(batch=(1, 1, 4), height=one, width=one, tokens=(tokens, tokens, tokens)),
        inputs=(TensorIO("input_ids", "int64", (batch, text)), TensorIO("attention_mask", "int64", (batch, text))),
        outputs=(TensorIO("last_hidden_state", "act", (batch, text, config["d_model"])),),
        family=T5Family(config["vocab_size"]),
        **own,
    )


T5_XXL = _spec(
    XXL_CONFIG,
    tokens=512,
    name="t5-xxl",
    title="T5 v1.1 XXL's encoder, as in FLUX.1, for prompts of 512 tokens",
    hub_id="black-forest-labs/FLUX.1-dev",
    subfolder="text_encoder_2",
    parameters=4_762_310_656,
    twin="t5-tiny",
)

T5_TINY = _spec(
    TINY_CONFIG,
    tokens=16,
    name="t5-tiny",
    title="T5's structure at 128 channels, for trials and tests",
    subfolder="text_encoder_2",
    parameters=336_640,
)
