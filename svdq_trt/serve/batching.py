"""Merging requests along the batch axis, and dividing their results again.

An input without a batch axis (FLUX's ``img_ids``) is one for all images: requests are merged only if they agree in it.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence

import numpy as np

from svdq_trt.base.errors import ShapeError

Arrays = Mapping[str, np.ndarray]


def batch_of(inputs: Arrays, shared: Container[str] = ()) -> int:
    """The batch that all inputs share, but for those without the axis.

    Raises:
        ShapeError: they differ; ONNX Runtime would broadcast some of them and return nonsense.
    """
    sizes: dict[str, int] = {name: value.shape[0] for name, value in inputs.items() if name not in shared}
    if len(set(sizes.values())) != 1:
        got = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise ShapeError("batch", got, "the same first axis in every input")
    return next(iter(sizes.values()))


def one_for_all(name: str, value: np.ndarray) -> np.ndarray:
    """An input without a batch axis, [...], from what a client sends to a model that merges: [batch, ...].

    Raises:
        ShapeError: it is not the same for every image.
    """
    if not (value == value[:1]).all():
        raise ShapeError(f"input '{name}'", "values that differ within the batch", "the same for every image")
    row: np.ndarray = value[0]
    return row


def key_of(inputs: Arrays, shared: Container[str] = ()) -> Hashable:
    """What must be equal in two requests that run together: shapes behind the batch axis, shared inputs as a whole."""
    return tuple(
        (name, value.shape, value.tobytes()) if name in shared else (name, value.shape[1:], b"")
        for name, value in sorted(inputs.items())
    )


def grouped(keys: Sequence[Hashable], batches: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of requests that run together: of one key, at most `limit` images in all."""
    groups: list[tuple[Hashable, list[int], int]] = []
    for index, (key, batch) in enumerate(zip(keys, batches, strict=True)):
        for place, (other, members, images) in enumerate(groups):
            if other == key and images + batch <= limit:
                groups[place] = (key, [*members, index], images + batch)
                break
        else:
            groups.append((key, [index], batch))
    return [members for _, members, _ in groups]


def merged(requests: Sequence[Arrays], shared: Container[str] = ()) -> dict[str, np.ndarray]:
    """Merge several requests of one key into one, in their order; a single one is returned as it is."""
    first = dict(requests[0])
    if len(requests) == 1:
        return first
    return {
        name: value if name in shared else np.concatenate([inputs[name] for inputs in requests])
        for name, value in first.items()
    }


def divided(outputs: Arrays, batches: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Divide the outputs of a merged request among its parts."""
    ends = np.cumsum(batches)
    return [
        {name: value[end - batch : end] for name, value in outputs.items()}
        for batch, end in zip(batches, ends, strict=True)
    ]
