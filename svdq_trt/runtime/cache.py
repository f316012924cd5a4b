"""The kernels that TensorRT-RTX compiles on the machine that runs an engine, kept on disk.

With the file a later process opens the same engine without compiling again. TensorRT-RTX checks its contents against
its release, the GPU and the driver, and ignores what does not fit. That they are whole, and of this plan, is checked
here: the file begins with the SHA-256 of the plan's digest and the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write

_DIGEST_BYTES = 32


def cache_path(folder: Path, gpu: str, version: str, plan: str) -> Path:
    """Path of the cache: one file per GPU model and release, beside the plan; a piece's name comes first."""
    piece = "" if plan == "model.plan" else Path(plan).stem
    slug = re.sub(r"[^a-z0-9]+", "-", f"{piece} {gpu} {version}".lower()).strip("-")
    return folder / f"runtime-cache-{slug}.bin"


class RuntimeCache:
    """A TensorRT-RTX IRuntimeCache with its file, for the plan whose digest is `plan_sha256`.

    Attributes:
        hit: whether the file was there and was taken. kept: whether it is on the disk by now.
    """

    def __init__(self, config: Any, path: Path, plan_sha256: str = "") -> None:
        """Attach to an IRuntimeConfig, loading the file if it exists and fits."""
        self.path, self._plan = path, plan_sha256.encode()
        self._cache = config.create_runtime_cache()
        blob = self._read()
        self.hit = bool(blob) and bool(self._cache.deserialize(blob))
        self.kept = self.hit
        self._digest = self._sha256(blob) if self.hit else b""
        config.set_runtime_cache(self._cache)

    def _read(self) -> bytes:
        """What an earlier process saved for this plan; empty where there is nothing, or something else."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return b""
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return blob if digest == self._sha256(blob) else b""

    def save(self) -> None:
        """Write what has been compiled since; a folder that is not writable simply gets no cache."""
        memory = self._cache.serialize()
        if memory is None:
            return
        blob = bytes(memory)
        if not blob or self._sha256(blob) == self._digest:
            return
        self._digest = self._sha256(blob)
        with contextlib.suppress(ArtifactError):
            with atomic_write(self.path) as tmp:
                tmp.write_bytes(self._digest + blob)
            self.kept = True

    def _sha256(self, blob: bytes) -> bytes:
        return hashlib.sha256(self._plan + blob).digest()
