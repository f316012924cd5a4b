"""The ways to quantize that are compared, and how one of them is made from a trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from quantizer_ladder import RUNGS
from torch import nn

from svdq_trt.calibrate import Calibration
from svdq_trt.models import ModelSpec
from svdq_trt.quantize.preset import PRESETS, Preset
from svdq_trt.quantize.run import quantize_model
from svdq_trt.spec.formats import FORMATS


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        label: for people.
        preset: what the quantizer does. format, rank: to what.
        outliers: factor on one in 64 channels before quantized layers, taken back in their weights; 1 is none.
    """

    label: str
    format: str
    rank: int
    preset: Preset
    outliers: float = 1.0

    @property
    def key(self) -> str:
        """Unique, and fit for a file name."""
        return f"{self.format}-{self.preset.name}-r{self.rank}-x{self.outliers:g}"


def variants(with_outliers: bool) -> list[Variant]:
    """The paper's ordering on int4, what came after it, the other formats, and int4 again under outliers."""
    rtn, smooth, svd, both, iterations = (RUNGS[name][0] for name in ("rtn", "smooth", "svd", "both", "+iter"))
    plain = [("round to nearest", 0, rtn), ("smoothing only", 0, smooth), ("SVD only", 32, svd), ("SVDQuant", 32, both)]
    rows = [Variant(label, "int4", rank, preset) for label, rank, preset in plain[:3]]
    rows += [Variant(f"SVDQuant, rank {rank}", "int4", rank, both) for rank in (16, 32, 64)]
    rows += [
        Variant("+ iterations", "int4", 32, iterations),
        Variant("+ GPTQ, refit (default)", "int4", 32, PRESETS["default"]),
    ]
    for name in ("nvfp4", "w4a8"):
        rows += [Variant(label, name, rank, preset) for label, rank, preset in (plain[0], plain[3])]
        rows.append(Variant("default", name, 32, PRESETS["default"]))
    for factor in (4.0, 16.0) if with_outliers else ():
        rows += [Variant(f"{label}, outliers x{factor:g}", "int4", r, preset, factor) for label, r, preset in plain]
    return rows


def make(spec: ModelSpec, module: nn.Module, calibration: Calibration, variant: Variant, work: Path) -> float:
    """Quantize `module` in place; returns the mean SQNR of its layers, dB."""
    groups = spec.groups(module)
    out = work / f"{variant.key}.safetensors"
    nodes = quantize_model(
        module, spec, groups, calibration, FORMATS[variant.format], variant.rank, replace(variant.preset), out,
        variant.key, lambda done, total, label: None,
    )  # fmt: skip
    out.unlink()
    return sum(node.sqnr_db for node in nodes) / len(nodes)


@torch.no_grad()
def amplify(spec: ModelSpec, module: nn.Module, factor: float) -> int:
    """Multiply one channel in 64 of the norms before quantized linears by `factor`, and divide their weights by it.

    The function stays the same; the activations get the outlier channels that large trained models have.
    Returns the number of norms changed; a norm without scale and shift of its own cannot be.
    """
    changed = 0
    rng = torch.Generator().manual_seed(64)
    for group in spec.groups(module):
        norm = module.get_submodule(group.source) if group.source else None
        if getattr(norm, "weight", None) is None:
            continue
        channels = torch.randperm(len(norm.weight), generator=rng)[: max(len(norm.weight) // 64, 1)]
        norm.weight[channels] *= factor
        norm.bias[channels] *= factor
        for name in group.members:
            module.get_submodule(name).weight[:, channels] /= factor
        changed += 1
    return changed
