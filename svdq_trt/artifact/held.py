"""A file of an engine folder as its manifest names it, and the check of what lies there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import sha256, sha256_of_chunks


@dataclass(frozen=True)
class Held:
    """A file that a manifest names.

    Attributes:
        file: its name. bytes: its size, sha256: its digest; None where the manifest has none.
        chunks: digests of its chunks, which then are what is compared; () where the manifest has none.
        with_data: the size is that of an ONNX file and its external data.
    """

    file: str
    bytes: int | None
    sha256: str | None
    chunks: tuple[str, ...] = ()
    with_data: bool = False

    def check(self, folder: Path, fix: str) -> None:
        """Compare with what lies in `folder`: the size, then, at 1.8 GB a second and thread, the digest.

        Raises:
            ArtifactError: missing, of another size, or of another digest.
        """
        path = folder / Path(self.file).name  # a name with folders in it must not lead out of the engine's
        if not os.path.isfile(path):  # also for a name that no file can have
            raise ArtifactError(str(path), "missing", "the file that the manifest names", fix)
        size = path.stat().st_size
        data = path.with_name(f"{path.name}.data")
        if self.with_data and os.path.isfile(data):
            size += data.stat().st_size
        if self.bytes is not None and size != self.bytes:
            raise ArtifactError(str(path), f"{size} bytes", f"{self.bytes} bytes", fix)
        if self.sha256 is None:
            return
        same = sha256_of_chunks(path) == self.chunks if self.chunks else sha256(path) == self.sha256
        if not same:
            raise ArtifactError(str(path), "another SHA-256 than the manifest's", self.sha256, fix)
