"""Reading safetensors one tensor at a time, with every defect of the file reported in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.errors import ArtifactError, first_line
from svdq_trt.base.files import atomic_write

#: dtypes weights may have on disk; others (integers) mean that the file is quantized already. fp8 without scales, as
#: ComfyUI writes it, is a rounded float.
FLOATS = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
#: A mapping is dropped after this much has been read from it, so that its pages don't stay in memory.
_REMAP_BYTES = 256 << 20


class TensorFile:
    """One .safetensors file: names, shapes, and tensors in a wanted dtype.

    A tensor that already has the wanted dtype is a view of the mapped file: memory that the system can reclaim.
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
        """The header's text entries besides the tensors, as the file's writer chose them: not to be trusted."""
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

    def read(self, name: str, dtype: torch.dtype, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or its rows [start, stop), as `dtype`, contiguous. Raises ArtifactError unless it is a float."""
        kind = self.kind(name)
        if kind not in FLOATS:
            raise ArtifactError(f"{self.path}: '{name}'", f"dtype {kind}", "floats")
        tensor: torch.Tensor = self._guard(lambda: self._open().get_tensor(name))
        if rows is not None and tensor.ndim:
            tensor = tensor[slice(*rows)]
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
            reason = first_line(error)
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
    """Yield every (file, tensor name). Raises ArtifactError when two files hold the same name."""
    seen: dict[str, Path] = {}
    for path in files:
        file = TensorFile(path)
        for name in file.names:
            if name in seen:
                raise ArtifactError(str(path), f"'{name}' again", f"it once (also in {seen[name].name})")
            seen[name] = path
            yield file, name


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file whole or not at all; tensors are contiguous.

    Raises:
        ArtifactError: as `atomic_write`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as tmp:
        try:
            save_file(dict(tensors), str(tmp), metadata=dict(metadata))
        except SafetensorError as error:  # the library wraps the system's error in its own type, as text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def stream_tensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a .safetensors file tensor by tensor, whole or not at all; as many are in memory as there are threads.

    Args:
        path: where the file goes.
        shapes: name -> (dtype as safetensors writes it, shape).
        read: name -> that tensor, contiguous, on the CPU; called once per name, from several threads.
        metadata: text entries of the header.

    Raises:
        ArtifactError: as `atomic_write`.
    """
    # The widest first, so that every tensor begins at a multiple of its item's size, as the format wants.
    order = sorted(shapes, key=lambda name: -_ITEM_BYTES[shapes[name][0]])
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = shapes[name]
        start, end = end, end + _ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)

    def place(name: str) -> None:
        tensor = read(name)
        assert SAFETENSORS_DTYPES[str(tensor.dtype)] == shapes[name][0] and tensor.shape == shapes[name][1], name
        if tensor.numel():
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            _write_at(file.fileno(), data, first + header[name]["data_offsets"][0])

    with atomic_write(path) as tmp, tmp.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        # The page cache takes several tensors at a time much faster than one after the other.
        with ThreadPoolExecutor(_WRITERS) as pool:
            placed = [pool.submit(place, name) for name in order]
            try:
                for one in placed:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data` from byte `at` of the file on; the system takes 2 GB at a time at most."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + 2**30], at + done)


_WRITERS = 4
#: torch's name of a dtype -> safetensors' name
SAFETENSORS_DTYPES = {
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.float8_e4m3fn": "F8_E4M3",
}
_ITEM_BYTES = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
