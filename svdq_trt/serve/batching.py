"""Merging requests along the batch axis, and dividing their results again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from svdq_trt.base.errors import ShapeError

Arrays = Mapping[str, np.ndarray]


def batch_of(inputs: Arrays) -> int:
    """The batch that all inputs share.

    Raises:
        ShapeError: they differ; ONNX Runtime would broadcast some of them and return nonsense.
    """
    sizes: dict[str, int] = {name: value.shape[0] for name, value in inputs.items()}
    if len(set(sizes.values())) != 1:
        got = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise ShapeError("batch", got, "the same first axis in every input")
    return next(iter(sizes.values()))


def grouped(requests: Sequence[Arrays], limit: int) -> list[list[int]]:
    """Indices of requests that run together: of one shape after the batch axis, at most `limit` images in all."""
    groups: list[tuple[tuple[tuple[int, ...], ...], list[int], int]] = []
    for index, inputs in enumerate(requests):
        key, batch = tuple(inputs[name].shape[1:] for name in sorted(inputs)), batch_of(inputs)
        for place, (other, members, images) in enumerate(groups):
            if other == key and images + batch <= limit:
                groups[place] = (key, [*members, index], images + batch)
                break
        else:
            groups.append((key, [index], batch))
    return [members for _, members, _ in groups]


def merged(requests: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Merge several requests into one, in their order; a single one is returned as it is."""
    if len(requests) == 1:
        return dict(requests[0])
    return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}


def divided(outputs: Arrays, batches: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Divide the outputs of a merged request among its parts."""
    ends = np.cumsum(batches)
    return [
        {name: value[end - batch : end] for name, value in outputs.items()}
        for batch, end in zip(batches, ends, strict=True)
    ]
