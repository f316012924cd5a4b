"""FLUX.1: text to image, with reference images, with an image beside the latents; small models; some full blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from svdq_trt.models.attention import JointAttention
from svdq_trt.models.family import Family
from svdq_trt.models.packed import BATCH, GUIDANCE, IMAGE, IMAGES, TIMESTEP, packed_spec, positions, text_input
from svdq_trt.models.positions import install_rotary
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import PATCH, Fill, Request, packed_latents, t5_text, token_grid

#: config.json of the published transformer, without diffusers' bookkeeping keys.
FLUX_DEV_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
FLUX_SCHNELL_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {"guidance_embeds": False}
#: beside a token's 64 channels, those of a picture (Canny, Depth), or of a masked picture and its mask (Fill)
CONTROL_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {"in_channels": 128, "out_channels": 64}
FILL_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {"in_channels": 384, "out_channels": 64}

#: Every branch of the graph with two million parameters; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "in_channels": 16,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "pooled_projection_dim": 48,
}

CONTROL_TINY_CONFIG: dict[str, Any] = TINY_CONFIG | {"in_channels": 32, "out_channels": 16}
FILL_TINY_CONFIG: dict[str, Any] = TINY_CONFIG | {"in_channels": 16 + 16 + 256, "out_channels": 16}


#: arguments of a transformer: what a ControlNet adds behind its two-stream and one-stream blocks
DOUBLE, SINGLE = "controlnet_block_samples", "controlnet_single_block_samples"
#: Published ControlNets have 5 or 6 residuals for FLUX.1's 19 blocks, and 10 for its 38: one for 4 blocks.
BLOCKS_PER_RESIDUAL = 4


def image_ids(rows: int, columns: int, images: int = 1) -> torch.Tensor:
    """[images * rows * columns, 3] f32: image, row and column of each token, as diffusers' pipelines make them."""
    grid = torch.meshgrid(torch.arange(images), torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(grid, dim=-1).reshape(-1, 3).float()


def _with_picture(r: Request) -> torch.Tensor:
    """Half of the channels is a picture, at every step."""
    half = replace(r, shape=(*r.shape[:2], r.shape[2] // 2))
    return torch.cat((packed_latents(half), packed_latents(replace(half, noise=0.0))), dim=-1)


def _with_masked_picture(r: Request) -> torch.Tensor:
    """Behind latents and a picture, 256 channels of a mask: 1 is painted anew, here the lower half."""
    mask = torch.zeros(*r.shape[:2], PATCH * PATCH)
    mask[:, r.shape[1] // 2 :] = 1.0
    return torch.cat((_with_picture(replace(r, shape=(*r.shape[:2], r.shape[2] - mask.shape[2]))), mask), dim=-1)


def _span(blocks: int, samples: int) -> int:
    """How many blocks in a row get the same residual, as diffusers shares them out."""
    return math.ceil(blocks / samples)


def _engine_samples(blocks: int) -> int:
    """How many residuals an engine takes for so many blocks."""
    return math.ceil(blocks / BLOCKS_PER_RESIDUAL)


def _shared_out(samples: Sequence[Any], blocks: int) -> Sequence[Any]:
    """An engine's residuals for `blocks`, out of a ControlNet's; those where an engine's span two of them."""
    count = _engine_samples(blocks)
    own, given = _span(blocks, count), _span(blocks, len(samples))
    fits = given % own == 0 or len(samples) == 1
    return [samples[i * own // given] for i in range(count)] if fits else samples


class FluxFamily(Family):
    """FluxTransformer2DModel, and the ControlNets for it: two-stream and one-stream blocks, modulated by adaLN.

    Args:
        tokens: synthetic image tokens. blocks: how many blocks each list of residuals is shared out over.
    """

    processors: ClassVar[Sequence[tuple[str, type]]] = ((r"(single_)?transformer_blocks\.\d+\.attn", JointAttention),)
    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = (
        ("encoder_hidden_states", t5_text),
        ("timestep", lambda r: torch.full(r.shape, float(r.noise))),
        ("img_ids", lambda r: image_ids(*token_grid(r), r.sizes["images"])),
        ("txt_ids", lambda r: torch.zeros(r.shape)),
        ("guidance", lambda r: torch.full(r.shape, 3.5)),
    )

    lists = (DOUBLE, SINGLE)

    def __init__(self, tokens: Fill = packed_latents, blocks: Mapping[str, int] | None = None) -> None:
        self._tokens, self._blocks = tokens, blocks or {}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """The inputs: of residuals one for the same blocks as the engine's, where a ControlNet's are for more."""
        given = {name: call[name] for name in self._blocks if call.get(name) is not None}
        return call | {name: _shared_out(samples, self._blocks[name]) for name, samples in given.items()}

    def fill_input(self, name: str, request: Request) -> torch.Tensor:
        """Fill an input as Family does, image tokens as this model has them."""
        return self._tokens(request) if name == "hidden_states" else super().fill_input(name, request)

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """Wrap the module as Family does, with angles in f32."""
        install_rotary(module, "pos_embed")
        return super().wrap(module, inputs)


def flux_inputs(config: Mapping[str, Any], image: Axis = IMAGE) -> tuple[TensorIO, ...]:
    """The inputs behind hidden_states."""
    return (
        text_input(config),
        TensorIO("pooled_projections", "act", (BATCH, config["pooled_projection_dim"])),
        TIMESTEP,
        *positions(image),
        *((GUIDANCE,) if config["guidance_embeds"] else ()),
    )


def residuals(config: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[TensorIO, ...]:
    """What a ControlNet adds to the image tokens behind blocks: so many tensors of each list."""
    dims = (BATCH, IMAGE, config["num_attention_heads"] * config["attention_head_dim"])
    return tuple(TensorIO(f"{name}_{i}", "act", dims) for name, n in counts.items() for i in range(n))


def _spec(
    config: dict[str, Any],
    tokens: Fill = packed_latents,
    references: bool = False,
    controlnet: bool = False,
    **own: Any,
) -> ModelSpec:
    """The spec of a transformer. `controlnet`: diffusers has pipelines that add a ControlNet's residuals."""
    image = IMAGES if references else IMAGE
    path = "diffusers.models.transformers.transformer_flux:FluxTransformer2DModel"
    blocks = {DOUBLE: config["num_layers"], SINGLE: config["num_single_layers"]} if controlnet else {}
    return packed_spec(
        path,
        config,
        image,
        flux_inputs(config, image),
        out_channels=config["out_channels"],
        family=FluxFamily(tokens, blocks),
        residuals=residuals(config, {name: _engine_samples(count) for name, count in blocks.items()}),
        **own,
    )


_FULL = (512, 1024, 1536)

FLUX_DEV = _spec(
    FLUX_DEV_CONFIG,
    controlnet=True,
    name="flux1-dev",
    title="FLUX.1 dev",
    hub_id="black-forest-labs/FLUX.1-dev",
    profile=Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(512, 512, 512)),
    parameters=11_901_408_320,
    twin="flux1-tiny",
    built=(89,),
)

FLUX_SCHNELL = _spec(
    FLUX_SCHNELL_CONFIG,
    controlnet=True,
    name="flux1-schnell",
    title="FLUX.1 schnell",
    hub_id="black-forest-labs/FLUX.1-schnell",
    profile=Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(256, 256, 256)),
    parameters=11_891_178_560,
    twin="flux1-tiny",
)

FLUX_KREA = _spec(
    FLUX_DEV_CONFIG,
    controlnet=True,
    name="flux1-krea-dev",
    title="FLUX.1 Krea dev",
    hub_id="black-forest-labs/FLUX.1-Krea-dev",
    profile=FLUX_DEV.profile,
    parameters=11_901_408_320,
    twin="flux1-tiny",
)

#: A reference is scaled to about the size of the image, so two images of one size stand for their tokens.
FLUX_KONTEXT = _spec(
    FLUX_DEV_CONFIG,
    references=True,
    name="flux1-kontext-dev",
    title="FLUX.1 Kontext dev: edits a reference image",
    hub_id="black-forest-labs/FLUX.1-Kontext-dev",
    pictures=("image",),
    profile=replace(FLUX_DEV.profile, images=(1, 2, 2)),
    parameters=11_901_408_320,
    twin="flux1-kontext-tiny",
)

FLUX_CANNY, FLUX_DEPTH = (
    _spec(
        CONTROL_CONFIG,
        _with_picture,
        name=f"flux1-{kind.lower()}-dev",
        title=f"FLUX.1 {kind} dev",
        hub_id=f"black-forest-labs/FLUX.1-{kind}-dev",
        pictures=("control_image",),
        profile=FLUX_DEV.profile,
        parameters=11_901_604_928,
        twin="flux1-fill-tiny",
    )
    for kind in ("Canny", "Depth")
)

FLUX_FILL = _spec(
    FILL_CONFIG,
    _with_masked_picture,
    name="flux1-fill-dev",
    title="FLUX.1 Fill dev: inpainting and outpainting",
    hub_id="black-forest-labs/FLUX.1-Fill-dev",
    pictures=("image", "mask_image"),
    profile=FLUX_DEV.profile,
    parameters=11_902_391_360,
    twin="flux1-fill-tiny",
)

#: For measuring: whole blocks at full width, in a thirtieth of the memory.
FLUX_BLOCKS = _spec(
    FLUX_DEV_CONFIG | {"num_layers": 2, "num_single_layers": 6},
    name="flux1-blocks",
    title="FLUX.1 at full width, 2 + 6 of its 19 + 38 blocks, for benchmarks",
    profile=FLUX_DEV.profile,
    parameters=1_593_338_432,
    twin="flux1-tiny",
)

FLUX_TINY = _spec(
    TINY_CONFIG,
    controlnet=True,
    name="flux1-tiny",
    title="FLUX.1's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_853_712,
)

FLUX_KONTEXT_TINY = _spec(
    TINY_CONFIG,
    references=True,
    name="flux1-kontext-tiny",
    title="FLUX.1 Kontext's structure at 128 channels, for trials and tests",
    pictures=("image",),
    profile=replace(FLUX_TINY.profile, images=(1, 2, 2)),
    parameters=1_853_712,
)

FLUX_CONTROL_TINY = _spec(
    CONTROL_TINY_CONFIG,
    _with_picture,
    name="flux1-control-tiny",
    title="FLUX.1 Canny's and Depth's structure at 128 channels, for trials and tests",
    pictures=("control_image",),
    profile=FLUX_TINY.profile,
    parameters=1_855_760,
    twin="flux1-fill-tiny",
)

FLUX_FILL_TINY = _spec(
    FILL_TINY_CONFIG,
    _with_masked_picture,
    name="flux1-fill-tiny",
    title="FLUX.1 Fill's structure at 128 channels, for trials and tests",
    pictures=("image", "mask_image"),
    profile=FLUX_TINY.profile,
    parameters=1_888_528,
)
