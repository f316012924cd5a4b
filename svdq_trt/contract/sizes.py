"""The sizes that a model's inputs follow from: each is an option of the build. Standard library only."""

from __future__ import annotations

#: size -> its unit, for people
SIZES: dict[str, str] = {
    "batch": "images",
    "height": "pixels",
    "width": "pixels",
    "tokens": "text tokens",
    "tokens2": "text tokens of a second encoder",
    "frames": "frames of a video",
    "images": "images that are one sequence: the new one and its references",
}

#: pixels of a side above which an autoencoder works by tiles of that side; what it must be a multiple of, as a quarter
#: of a tile overlaps the next and autoencoders have 8 or 16 pixels to a latent
VAE_TILE, TILE_MULTIPLE = 1024, 64
