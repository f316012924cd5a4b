"""The ways to quantize that are compared, and making one of them from a trained model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quantizer_ladder import RUNGS
from safetensors.torch import load_file
from torch import Tensor, nn

from svdq_trt import calibrate
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.contract.formats import FORMATS
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.quantize.preset import PRESETS, Preset
from svdq_trt.quantize.run import quantize_model
from trained.tasks import TASKS

TOKENS = 512  # calibration rows per node
FACTORS = (16.0, 64.0)  # of the outliers


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        label: name for people.
        preset: the quantizer's preset. format, rank: as for the quantizer.
        outliers: factor on one in 64 channels before quantized layers, undone in their weights; 1 is none.
    """

    label: str
    format: str
    rank: int
    preset: Preset
    outliers: float = 1.0

    @property
    def key(self) -> str:
        """A unique key that can be part of a file name."""
        return f"{self.format}-{self.preset.name}-r{self.rank}-x{self.outliers:g}"

    @property
    def section(self) -> str:
        """The section of the table that it belongs to."""
        return self.format + (f", outliers x{self.outliers:g}" if self.outliers != 1 else "")


def variants() -> list[Variant]:
    """The rows: the paper's ordering on int4, later additions, the other formats, and int4 again with outliers."""
    rtn, smooth, svd, both, iterations = (RUNGS[name][0] for name in ("rtn", "smooth", "svd", "both", "+iter"))
    default = PRESETS["default"]
    plain = [("round to nearest", 0, rtn), ("smoothing only", 0, smooth), ("SVD only", 32, svd)]
    rows = [Variant(label, "int4", rank, preset) for label, rank, preset in plain]
    rows += [Variant(f"SVDQuant, rank {rank}", "int4", rank, both) for rank in (16, 32, 64)]
    rows += [Variant("+ iterations", "int4", 32, iterations), Variant("+ GPTQ, refit (default)", "int4", 32, default)]
    ends = [plain[0], ("SVDQuant", 32, both), ("default", 32, default)]
    rows += [Variant(label, name, rank, preset) for name in ("nvfp4", "w4a8") for label, rank, preset in ends]
    for factor in FACTORS:
        rows += [Variant(label, "int4", rank, preset, factor) for label, rank, preset in [*plain, *ends[1:]]]
    return rows


#: Rows that say most, in the order in which they are made; the others follow in the table's order.
FIRST = (
    "int4-rtn-r0-x1",
    "int4-both-r32-x1",
    "int4-default-r32-x1",
    "int4-rtn-r0-x16",
    "int4-both-r32-x16",
    "w4a8-both-r32-x1",
    "nvfp4-both-r32-x1",
    "nvfp4-default-r32-x1",
    "w4a8-default-r32-x1",
)


def by_importance(rows: list[Variant]) -> list[Variant]:
    """The rows in the order of FIRST."""
    return sorted(rows, key=lambda v: FIRST.index(v.key) if v.key in FIRST else len(FIRST))


class Made(NamedTuple):
    """A quantized model on disk: its artifact, the mean SQNR of its nodes, and the seconds that it took."""

    path: Path
    layers_db: float
    seconds: float


def loaded(spec: ModelSpec, checkpoint: Path, factor: float = 1.0) -> nn.Module:
    """The trained model in its act dtype on the CPU, with outliers."""
    module = spec.build(device="cpu")
    module.load_state_dict(load_file(checkpoint))
    if factor != 1:
        amplify(spec, module, factor)
    return module


def start_worker() -> None:
    """Prepare this process to quantize beside others: with one thread, and slow imports done.

    More threads than cores cost far more than they gain: every operation waits for its slowest thread. The process
    must have been started with OMP_NUM_THREADS=1, too, for code that runs before this.
    """
    torch.set_num_threads(1)
    get_model("sdxl-tiny").model_class()


def calibrated(name: str, work: Path, factor: float) -> Path:
    """Calibrate the model under `work` on its calibration-inputs.safetensors; runs in a worker."""
    spec, out = TASKS[name].spec, calibration_file(work, factor)
    module = loaded(spec, work / "model.safetensors", factor)
    inputs = work / "calibration-inputs.safetensors"
    calibrate.collect(module, spec, data=inputs, tokens_per_group=TOKENS).save(out)
    return out


def calibration_file(work: Path, factor: float) -> Path:
    """The file that `calibrated` writes."""
    return work / f"calib-x{factor:g}.safetensors"


def make(name: str, work: Path, variant: Variant) -> Made:
    """Quantize the calibrated model under `work`; runs in a worker."""
    begin, spec, out = time.perf_counter(), TASKS[name].spec, work / f"{variant.key}.safetensors"
    module = loaded(spec, work / "model.safetensors", variant.outliers)
    calibration = Calibration.load(calibration_file(work, variant.outliers))
    nodes = quantize_model(
        module,
        spec,
        spec.groups(module),
        calibration,
        FORMATS[variant.format],
        variant.rank,
        variant.preset,
        out,
        variant.key,
        lambda done, total, text="": None,
    )
    return Made(out, sum(node.sqnr_db for node in nodes) / len(nodes), time.perf_counter() - begin)


class _Outlet(NamedTuple):
    """Parameters that scale the channels of a layer's input: gain and shift, [K] views, and the value of a gain of 1.

    A norm's weight and bias; or the rows of a modulation's linear, whose output is a gain *minus one* and a shift.
    """

    gain: list[Tensor]
    shift: list[Tensor]
    less_one: Tensor | None
    readers: list[nn.Linear]


@torch.no_grad()
def amplify(spec: ModelSpec, module: nn.Module, factor: float) -> int:
    """Multiply one channel in 64 of quantized linears' inputs by `factor`, and divide their weights by it.

    The function stays the same; the activations get the outlier channels that large trained models have. Changed are
    inputs that come from a norm with a scale of its own or from one modulated by adaLN; returns their number.
    """
    changed = 0
    rng = torch.Generator().manual_seed(64)
    for outlet in _outlets(spec, module):
        k = outlet.readers[0].in_features
        channels = torch.randperm(k, generator=rng)[: max(k // 64, 1)]
        for values in (*outlet.gain, *outlet.shift):
            values[channels] *= factor
        if outlet.less_one is not None:
            outlet.less_one[channels] += factor - 1
        for linear in outlet.readers:
            linear.weight[:, channels] /= factor
        changed += 1
    return changed


def _outlets(spec: ModelSpec, module: nn.Module) -> Iterator[_Outlet]:
    get: Callable[[str], Any] = module.get_submodule
    for group in spec.groups(module):
        norm = get(group.source) if group.source else None
        if norm is not None and norm.weight is not None:
            yield _Outlet([norm.weight], [norm.bias], None, [get(m) for m in group.members])
    for i in range(len(getattr(module, "single_transformer_blocks", ()))):  # FLUX.1
        block = f"single_transformer_blocks.{i}"
        yield _modulated(get(f"{block}.norm.linear"), 0, [get(f"{block}.{m}") for m in (*_QKV, "proj_mlp")])
    for i in range(len(getattr(module, "transformer_blocks", ())) if hasattr(module, "context_embedder") else 0):
        block = f"transformer_blocks.{i}"
        for norm, names, ff in (("norm1", _QKV, "ff"), ("norm1_context", _ADDED, "ff_context")):
            linear = get(f"{block}.{norm}.linear")
            yield _modulated(linear, 0, [get(f"{block}.{m}") for m in names])
            yield _modulated(linear, 3, [get(f"{block}.{ff}.net.0.proj")])


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _modulated(linear: nn.Linear, part: int, readers: list[nn.Linear]) -> _Outlet:
    """Shift and gain are parts `part` and `part + 1` of the modulation's output."""
    k = readers[0].in_features
    shift, gain = slice(part * k, (part + 1) * k), slice((part + 1) * k, (part + 2) * k)
    return _Outlet(
        [linear.weight[gain], linear.bias[gain]], [linear.weight[shift], linear.bias[shift]], linear.bias[gain], readers
    )
