"""One hash for "the same weights", so that a stage's result is reused only for them."""

from __future__ import annotations

import hashlib
import json

from svdq_trt.base.files import sha256
from svdq_trt.checkpoint.locate import locate
from svdq_trt.checkpoint.random_weights import GENERATOR_VERSION
from svdq_trt.models import ModelSpec


def weights_digest(spec: ModelSpec, checkpoint: str | None = None, random_seed: int | None = None) -> str:
    """``sha256:<hex>`` of the model's config and its weights.

    Files are hashed whole (1.8 GB/s: 3 s for SDXL), not by size and time: a copied checkpoint keeps its
    digest and an edited one never does. Names of files don't count. For random weights, the seed and the
    generator's version are hashed.

    Raises:
        UsageError, ArtifactError: as `load`.
    """
    h = hashlib.sha256()
    h.update(json.dumps([spec.name, spec.act_dtype, dict(spec.config)], sort_keys=True).encode())
    if random_seed is not None:
        h.update(f"random:{GENERATOR_VERSION}:{random_seed}".encode())
        return f"sha256:{h.hexdigest()}"
    for path in locate(spec, checkpoint).files:
        h.update(bytes.fromhex(sha256(path)))
    return f"sha256:{h.hexdigest()}"
