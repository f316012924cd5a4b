"""Reading safetensors one tensor at a time, with every defect of the file told in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from svdq_trt.errors import ArtifactError

#: dtypes weights may have on disk; others (integers, fp8) mean the file was quantized by somebody already.
_FLOATS = {"F16", "BF16", "F32", "F64"}
#: A mapping is dropped after this much was read from it, so that its pages don't stay in memory.
_REMAP_BYTES = 256 << 20


class TensorFile:
    """One .safetensors file: names, shapes, and tensors in a wanted dtype.

    A tensor that has the wanted dtype already is a view of the mapped file: memory the system can take back.
    Others are converted one by one.

    Raises:
        ArtifactError: unreadable, truncated, or a malformed header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._read = 0
        self.names: tuple[str, ...] = tuple(self._guard(lambda: self._open().keys()))

    def metadata(self) -> dict[str, str]:
        """What the header says beside the tensors: text that whoever wrote the file chose."""
        return dict(self._guard(lambda: self._open().metadata()) or {})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._guard(lambda: self._open().get_slice(name).get_shape()))

    def kind(self, name: str) -> str:
        """The dtype on disk as safetensors names it ("BF16", "I8", ...), without reading the tensor."""
        return str(self._guard(lambda: self._open().get_slice(name).get_dtype()))

    def read_stored(self, name: str) -> torch.Tensor:
        """The tensor in the dtype it has on disk: a view of the mapped file. Check shape and kind first."""
        tensor: torch.Tensor = self._guard(lambda: self._open().get_tensor(name))
        return tensor

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor as `dtype`, contiguous. Raises ArtifactError unless it is a float on disk."""
        kind = self.kind(name)
        if kind not in _FLOATS:
            raise ArtifactError(
                f"{self.path}: '{name}'",
                f"dtype {kind}",
                "16- or 32-bit floats",
                "Use an unquantized checkpoint.",
            )
        tensor: torch.Tensor = self._guard(lambda: self._open().get_tensor(name))
        out = tensor.to(dtype)
        # A view keeps its own mapping alive; without views the pages go with the handle.
        self._read += tensor.numel() * tensor.element_size()
        if self._read >= _REMAP_BYTES:
            self._handle, self._read = None, 0
        return out

    def _open(self) -> Any:
        handle = self._handle  # another thread may drop it meanwhile
        if handle is None:
            from safetensors import safe_open

            handle = self._handle = safe_open(str(self.path), framework="pt")
        return handle

    def _guard(self, read: Callable[[], Any]) -> Any:
        from safetensors import SafetensorError

        try:
            return read()
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise ArtifactError(
                str(self.path),
                f"not a readable safetensors file ({reason})",
                "a complete safetensors file",
                "Download it again.",
            ) from error


def check_finite(where: str, tensor: torch.Tensor) -> None:
    """Raise ArtifactError if a tensor holds NaN or Inf. One pass, no temporary: min and max pass both on."""
    if tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArtifactError(where, "NaN or Inf", f"finite values that fit {str(tensor.dtype).removeprefix('torch.')}")


def iter_sources(files: tuple[Path, ...]) -> Iterator[tuple[TensorFile, str]]:
    """Every (file, tensor name). Raises ArtifactError when two files hold the same name."""
    seen: dict[str, Path] = {}
    for path in files:
        file = TensorFile(path)
        for name in file.names:
            if name in seen:
                raise ArtifactError(str(path), f"'{name}' again", f"it once (also in {seen[name].name})")
            seen[name] = path
            yield file, name
