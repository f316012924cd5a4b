"""What the classes of manifest.json have in common: a meaning for every field, and values that a build can write."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

#: bounds of a count or a size
COUNT = {"ge": 0}
DIGEST = {"pattern": "^([0-9a-f]{64})?$"}
MAX_DIMS = 8  # TensorRT's
_DTYPES = {"bool", "int8", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"}


def says(meaning: str, **limits: Any) -> msgspec.Meta:
    """What a field means, for the documentation (manifest_fields.py), and the limits of its value."""
    return msgspec.Meta(description=meaning, **limits)


class Entry(msgspec.Struct, frozen=True):
    """An object of the manifest; fields that a newer release adds are ignored."""


Chunks = Annotated[
    tuple[Annotated[str, msgspec.Meta(**DIGEST)], ...],
    says("digests of each 256 MiB, which threads check side by side; none for less, or of an earlier release"),
]


class FileEntry(Entry, frozen=True, omit_defaults=True):
    """A file."""

    file: Annotated[str, says("its name")]
    bytes: Annotated[int, says("its size", **COUNT)]
    sha256: Annotated[str, says("its digest", **DIGEST)]
    chunks: Chunks = ()


def check_shapes(low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> None:
    """Raise ValueError unless these can be the shapes of an optimization profile."""
    if not len(low) == len(opt) == len(high) <= MAX_DIMS:
        raise ValueError(
            f"min {list(low)[:9]}, opt {list(opt)[:9]}, max {list(high)[:9]}, of different or too many dims"
        )
    if not all(0 <= a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise ValueError(f"min {list(low)}, opt {list(opt)}, max {list(high)}, not in this order")


def check_dtype(name: str) -> None:
    """Raise ValueError unless `name` is a dtype that inputs and outputs have."""
    if name not in _DTYPES:
        raise ValueError(f"dtype {name[:40]!r}")
