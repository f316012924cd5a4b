"""The inputs that a build's check runs both models on: recorded ones where there are any, else synthetic ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svdq_trt.calibrate.inputs import InputFile, InputGroup
from svdq_trt.models import ModelSpec, TensorIO

COUNT = 4  # of inputs; fewer where fewer are recorded


@dataclass(frozen=True)
class CheckInputs:
    """Inputs of one shape.

    Attributes:
        feeds: each by name, in the model's dtypes. sizes: of the inputs, by symbol.
        recorded: of a pipeline, rather than synthetic. note: for people, why not recorded ones; "" if nothing is amiss.
    """

    feeds: list[dict[str, Tensor]]
    sizes: dict[str, int]
    recorded: bool
    note: str = ""


def check_inputs(
    spec: ModelSpec, ranges: Mapping[str, tuple[int, int]], seed: int, recorded: Path | None
) -> CheckInputs:
    """The check's inputs for an engine.

    Synthetic ones are of the smallest shape, one seed each, from a noisy step to a clean one.

    Args:
        ranges: symbol (batch, height, ...) -> (smallest, largest).
        seed: of the first synthetic input.
        recorded: a file of calibration inputs (InputFile), of which the most of one size are taken; none are where
            their sizes are outside `ranges`.
    """
    note = ""
    if recorded is not None:
        for group in sorted(InputFile(spec, recorded).groups, key=len, reverse=True):
            sizes = group.sizes | {"batch": ranges["batch"][0]}
            misfit = next((name for name, size in sizes.items() if not _holds(ranges, name, size)), "")
            if not misfit:
                return CheckInputs(_recorded(spec, group, sizes["batch"]), sizes, recorded=True)
        note = (
            f"The check runs on synthetic inputs: those of {recorded.name} have {misfit} {sizes[misfit]}, "
            "which this engine does not take."
        )
    sizes = {symbol: low for symbol, (low, _) in ranges.items()}
    feeds = []
    for i in range(COUNT):
        values = spec.example_inputs(**sizes, seed=seed + i, noise=1 - (i + 0.5) / COUNT)  # type: ignore[arg-type]
        feeds.append({io.name: value for io, value in zip(spec.inputs, values, strict=True)})
    return CheckInputs(feeds, sizes, recorded=False, note=note)


def _holds(ranges: Mapping[str, tuple[int, int]], name: str, size: int) -> bool:
    """Whether an axis may have the size; one of several symbols, "height_width", is their product."""
    low = high = 1
    for symbol in name.split("_"):
        low, high = low * ranges[symbol][0], high * ranges[symbol][1]
    return low <= size <= high


def _recorded(spec: ModelSpec, group: InputGroup, batch: int) -> list[dict[str, Tensor]]:
    """Up to COUNT inputs of `batch` samples each, evenly spaced; samples repeat where there are too few."""
    samples = list(group)
    count = min(COUNT, len(samples))

    def value(io: TensorIO, column: int, start: int) -> Tensor:
        chosen = [samples[(start + i) % len(samples)][column] for i in range(batch)]
        joined = torch.cat(chosen) if io.has_batch else chosen[0]
        return joined.to(io.torch_dtype(spec.torch_dtype))

    starts = [(2 * i + 1) * len(samples) // (2 * count) for i in range(count)]
    return [{io.name: value(io, column, s) for column, io in enumerate(spec.inputs)} for s in starts]
