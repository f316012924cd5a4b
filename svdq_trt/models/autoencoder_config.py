"""What an autoencoder's config says of its latents and its pixels, by whatever names its class has."""

from __future__ import annotations

from typing import Any

from svdq_trt.models.spec import Axis


def patch_side(config: Any) -> int:
    """Latents of a side that an autoencoder takes together: 2 where it normalizes patches of them, else 1."""
    return 2 if "batch_norm_eps" in config else 1


def autoencoder_scale(config: Any) -> int:
    """Pixels of an image's side to one of a latent's."""
    blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels") or config.dim_mult
    return int(2 ** (len(blocks) - 1))


def has_frames(config: Any) -> bool:
    """Whether an autoencoder's pictures are first frames [B, C, 1, H, W]; its graphs have none."""
    return "temperal_downsample" in config


def latent_channels(config: Any) -> int:
    """Channels of an autoencoder's latents."""
    return int(config.z_dim if has_frames(config) else config.latent_channels)


def pixel_channels(config: Any) -> int:
    """Channels of the image, read and made."""
    return int(config.input_channels if has_frames(config) else config.in_channels)


def latent_axes(config: Any) -> tuple[Axis, Axis]:
    """Rows and columns of the latents."""
    scale, side = autoencoder_scale(config), patch_side(config)
    return Axis("height", divisor=scale, multiple=side), Axis("width", divisor=scale, multiple=side)


def pixel_axes(config: Any) -> tuple[Axis, Axis]:
    """Rows and columns of the image."""
    step = autoencoder_scale(config) * patch_side(config)
    return Axis("height", multiple=step), Axis("width", multiple=step)
