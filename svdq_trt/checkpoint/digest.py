"""One hash for "the same weights", so that a stage's result is reused only for them; and the files behind it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from svdq_trt.artifact.entry import FileEntry
from svdq_trt.base.files import sha256
from svdq_trt.checkpoint.locate import locate
from svdq_trt.checkpoint.random_weights import GENERATOR_VERSION
from svdq_trt.models import ModelSpec


@dataclass(frozen=True)
class Identity:
    """Which weights these are.

    Attributes:
        digest: ``sha256:<hex>`` of the model's config and its weights. files: what was hashed; none for a seed.
        notes, commit: as in Source.
    """

    digest: str
    files: tuple[FileEntry, ...] = ()
    notes: tuple[str, ...] = ()
    commit: str = ""


def identify_weights(spec: ModelSpec, checkpoint: str | None = None, random_seed: int | None = None) -> Identity:
    """Hash a model's weights.

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
        return Identity(f"sha256:{h.hexdigest()}")
    source = locate(spec, checkpoint)
    files = tuple(FileEntry(path.name, path.stat().st_size, sha256(path)) for path in source.files)
    for file in files:
        h.update(bytes.fromhex(file.sha256))
    return Identity(f"sha256:{h.hexdigest()}", files, source.notes, source.commit)
