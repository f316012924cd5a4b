"""Running the model over some inputs and keeping what the quantizer needs to know about each group's x.

Letters: M tokens of one call, K input features, T rows kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from svdq_trt.artifact.calibration import Calibration
from svdq_trt.base.errors import RangeError, UsageError
from svdq_trt.base.progress import Progress
from svdq_trt.calibrate.inputs import InputFile, Inputs, batches, synthetic
from svdq_trt.calibrate.upcast import exact_convolutions, float32_layers
from svdq_trt.checkpoint.ahead import Read, read_ahead_of
from svdq_trt.contract.numerics import CPU
from svdq_trt.models import LinearGroup, ModelSpec
from svdq_trt.models.recipe import node_input, weight_layers

_STREAM_BATCH = 4


def collect(
    module: nn.Module,
    spec: ModelSpec,
    groups: Sequence[LinearGroup] | None = None,
    *,
    samples: int = 4,
    tokens_per_group: int = 512,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    read: Read | None = None,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Calibration:
    """Collect, per group, the amax of every input channel over all tokens and a uniform sample of rows.

    The module keeps its 16-bit weights and computes in f32 (upcast.py).

    Args:
        module: the loaded model, its linears not replaced yet.
        spec: the model's description.
        groups: groups to watch; all of the model's when None.
        samples: synthetic inputs, spread over the denoising steps; ignored with `data`.
        tokens_per_group: T, rows kept per group; fewer where the inputs have fewer tokens.
        height: height of synthetic images in pixels; the model's calibration size when None.
        width: their width, likewise.
        seed: for the synthetic inputs and the choice of rows; equal seeds give equal results.
        data: .safetensors file with real inputs instead (inputs.py).
        read: name -> parameter, for a module on meta: each is read when its layer runs. Up to _STREAM_BATCH samples
            then go through the model together, so that each is read once for all of them.
        device: where the layers run. The result is on the CPU; devices differ in its last bits.
        progress: called with (layers done, all layers, label).

    Raises:
        UsageError: samples or tokens_per_group below 1.
        RangeError: NaN, Inf, or an overflow of the act dtype, naming the first layer that produces it.
        ArtifactError, ShapeError: `data` cannot be used.
    """
    if samples < 1:
        raise UsageError("calibration samples", str(samples), "at least 1")
    if tokens_per_group < 1:
        raise UsageError("calibration tokens per group", str(tokens_per_group), "at least 1")
    groups = spec.groups(module) if groups is None else groups
    inputs: Iterable[Inputs]
    sizes: tuple[int | None, ...]
    if data is not None:
        inputs = file = InputFile(spec, data)
        samples, sizes = file.samples, tuple(file.groups[0].sizes.get(side) for side in ("height", "width"))
    else:
        sizes = (height or spec.calibration_pixels, width or spec.calibration_pixels)
        inputs = synthetic(spec, samples, height or spec.calibration_pixels, width or spec.calibration_pixels, seed)
    batch = 1 if read is None else min(samples, _STREAM_BATCH)
    watcher = _Watcher(spec, groups, weight_layers(module), samples, tokens_per_group, seed, progress)
    flat = spec.wrap(module)
    order = [(name, t.nbytes) for name, t in module.named_parameters()]
    with (
        torch.no_grad(),
        exact_convolutions(),
        read_ahead_of(device, read, order) as read_next,
        float32_layers(module, watcher.see, read_next, device),
    ):
        for count, values in batches(spec, inputs, batch):
            watcher.batch = count
            flat(*(value.to(device) for value in values))
            watcher.sample += count
    meta = {
        "model": spec.name,
        "source": "synthetic" if data is None else Path(data).name,
        "samples": samples,
        "height": sizes[0],
        "width": sizes[1],
        "seed": seed,
        "tokens_per_group": tokens_per_group,
    }
    return watcher.result(meta)


class _Watcher:
    """Observer of every layer's call: checks all of them and records the groups' inputs."""

    def __init__(
        self,
        spec: ModelSpec,
        groups: Sequence[LinearGroup],
        layers: Mapping[str, nn.Module],
        samples: int,
        rows: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.dtype = spec.torch_dtype
        self.limit = torch.finfo(self.dtype).max
        self.by_layer: dict[str, list[LinearGroup]] = {}
        for g in groups:  # all members see the same x: watch the first
            self.by_layer.setdefault(g.members[0], []).append(g)
        self.layers = layers
        self.samples, self.rows, self.seed, self.progress = samples, rows, seed, progress
        self.sample = self.done = 0
        self.batch = 1  # samples in the current call
        self.amax: dict[str, torch.Tensor] = {}
        self.kept: dict[str, list[torch.Tensor]] = {g.node: [] for g in groups}

    def see(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        self._check(name, y)
        for group in self.by_layer.get(name, ()):
            self._record(name, group, node_input(self.layers[name], group, x))

    def _record(self, name: str, group: LinearGroup, x: torch.Tensor) -> None:
        """Record x [M, K], which the group's node will read."""
        self._check(f"{name}' (its input) of '{group.node}", x)
        # Two reductions and no |x|: the temporary would be as large as the largest activation.
        amax = torch.maximum(x.amax(0), -x.amin(0)).float().cpu()
        before = self.amax.get(group.node)
        self.amax[group.node] = amax if before is None else torch.maximum(before, amax)
        # Each sample gives as many rows: where all have as many tokens, that is a uniform choice.
        seen, after = self.sample, self.sample + self.batch
        share = self.rows * after // self.samples - self.rows * seen // self.samples
        rng = torch.Generator().manual_seed(_hash(f"{self.seed}:{self.sample}:{group.node}"))
        chosen = torch.randperm(len(x), generator=rng)[:share].sort().values
        self.kept[group.node].append(x[chosen.to(x.device)].to(self.dtype).cpu())
        self.done += self.batch
        if self.progress:
            self.progress(self.done, self.samples * len(self.kept), group.node)

    def _check(self, name: str, t: torch.Tensor) -> None:
        low, high = torch.stack(torch.aminmax(t)).tolist()  # one wait for the GPU
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RangeError(f"layer '{name}'", "NaN or Inf in calibration", "finite values", "Check the weights.")
        if max(-low, high) > self.limit:
            got = f"|value| up to {max(-low, high):.3g} in calibration"
            raise RangeError(f"layer '{name}'", got, f"at most {self.limit:.0f} ({self.dtype})", "Check the weights.")

    def result(self, meta: dict[str, object]) -> Calibration:
        rows = {}
        for node in list(self.kept):  # free each group's parts as soon as they are joined
            rows[node] = torch.cat(self.kept.pop(node))
        return Calibration(self.amax, rows, meta)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
