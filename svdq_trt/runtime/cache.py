"""The kernels that TensorRT-RTX compiles on the machine that runs an engine, kept on disk.

With the file a later process opens the same engine without compiling again. TensorRT-RTX checks the file against
its release, the GPU and the driver, and ignores one that does not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write


def cache_path(folder: Path, gpu: str, version: str) -> Path:
    """Path of the cache: one file per GPU model and release, beside the plan."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu} {version}".lower()).strip("-")
    return folder / f"runtime-cache-{slug}.bin"


class RuntimeCache:
    """A TensorRT-RTX IRuntimeCache with its file."""

    def __init__(self, config: Any, path: Path) -> None:
        """Attach to an IRuntimeConfig, loading the file if it exists and fits."""
        self.path = path
        self._cache = config.create_runtime_cache()
        self.hit = path.is_file() and bool(self._cache.deserialize(path.read_bytes()))
        self._digest = self._sha256(path.read_bytes()) if self.hit else b""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what has been compiled since; a folder that is not writable simply gets no cache."""
        memory = self._cache.serialize()
        if memory is None:
            return
        blob = bytes(memory)
        if not blob or self._sha256(blob) == self._digest:
            return
        self._digest = self._sha256(blob)
        with contextlib.suppress(ArtifactError), atomic_write(self.path) as tmp:
            tmp.write_bytes(blob)

    @staticmethod
    def _sha256(blob: bytes) -> bytes:
        return hashlib.sha256(blob).digest()
