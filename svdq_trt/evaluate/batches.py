"""Inputs of more samples than an engine's largest batch, as recorded ones are: divided, and their outputs joined."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ShapeError

Arrays = Mapping[str, np.ndarray]


def divided(feed: Arrays, profiles: Sequence[TensorProfile]) -> list[Arrays]:
    """The feed in parts of nearly equal numbers of samples, each within the range of the batch; whole if it fits.

    Raises:
        ShapeError: no such parts add up to the number of samples.
    """
    stacked = {p.name: p for p in profiles if p.axes[:1] == ("batch",) and p.name in feed and feed[p.name].ndim}
    counts = {len(feed[name]) for name in stacked}
    if len(counts) != 1:  # without a batch axis, or what the session refuses
        return [feed]
    (count,) = counts
    low, high = max(p.min[0] for p in stacked.values()), min(p.max[0] for p in stacked.values())
    parts = -(-count // high) if high > 0 else 1
    if parts <= 1:
        return [feed]
    if count // parts < low:
        want = f"a number that batches of {low} add up to" if low == high else f"one that batches of {low}..{high} make"
        raise ShapeError("inputs", f"{count} samples", want)
    cuts = [count * i // parts for i in range(parts + 1)]
    return [
        {name: value[start:stop] if name in stacked else value for name, value in feed.items()}
        for start, stop in itertools.pairwise(cuts)
    ]


def joined(outputs: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The outputs of `divided` inputs, sample after sample."""
    if len(outputs) == 1:  # which may have no sample axis
        return dict(outputs[0])
    return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}
