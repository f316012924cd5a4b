"""The check as a picture: SQNR per layer, and quantized against FP16 output values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svdq_trt.artifact.manifest import OutputEntry
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.files import atomic_write
from svdq_trt.evaluate.metrics import load_outputs
from svdq_trt.evaluate.pictures import plt

_MAX_POINTS = 20_000
_COLORS = plt.get_cmap("tab10")


def plot_accuracy(
    nodes: Sequence[Node],
    accuracy: Sequence[OutputEntry],
    reference: Path,
    quantized: Path,
    title: str,
    out: Path,
) -> None:
    """Write a PNG with two panels: layer SQNR in graph order, and a scatter of the output that has lost most."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(1.7, 1), layout="constrained")
    kinds = sorted({_kind(n) for n in nodes})
    for i, kind in enumerate(kinds):
        points = [(j, n.sqnr_db) for j, n in enumerate(nodes) if _kind(n) == kind]
        left.plot(*zip(*points, strict=True), ".", color=_COLORS(i % 10), label=kind, markersize=5)
    left.set(xlabel="node, in graph order", ylabel="SQNR of the layer's output [dB]", title=f"{title}: layers")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    left.grid(alpha=0.3)

    worst = min(accuracy, key=lambda one: one.sqnr_db)
    outputs = load_outputs(reference)[worst.name], load_outputs(quantized)[worst.name]
    _scatter(right, worst, *outputs, "FP16", "quantized")
    with atomic_write(out) as tmp:
        fig.savefig(tmp, format="png", dpi=110)
    plt.close(fig)


def plot_outputs(
    accuracy: Sequence[OutputEntry],
    ref: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    names: tuple[str, str],
    out: Path,
) -> None:
    """Write a PNG with one scatter per output; `names` label the reference's axis and the other's."""
    fig, axes = plt.subplots(1, len(accuracy), figsize=(5.5 * len(accuracy), 5), layout="constrained", squeeze=False)
    for axis, one in zip(axes[0], accuracy, strict=True):
        _scatter(axis, one, ref[one.name], got[one.name], *names)
    with atomic_write(out) as tmp:
        fig.savefig(tmp, format="png", dpi=110)
    plt.close(fig)


def _scatter(axis: Any, one: OutputEntry, ref: np.ndarray, got: np.ndarray, x_name: str, y_name: str) -> None:
    step = max(1, ref.size // _MAX_POINTS)
    axis.plot(ref.ravel()[::step], got.ravel()[::step], ".", markersize=1.5, alpha=0.4)
    limit = float(np.abs(ref).max())
    axis.plot([-limit, limit], [-limit, limit], "k-", linewidth=0.8)
    axis.set(xlabel=x_name, ylabel=y_name, title=f"{one.name}: {one.sqnr_db:.1f} dB, cos {one.cosine:.4f}")
    axis.grid(alpha=0.3)


def _kind(node: Node) -> str:
    """The kind of a layer: the end of its module path, such as ``attn1.to_qkv``."""
    path = node.name.removesuffix(".0") if node.name.endswith("to_out.0") else node.name
    parts = path.split(".")
    tail = parts[-3:] if parts[-1].isdigit() else parts[-2:]  # ff.net.2, attn1.to_qkv
    return f"{'.'.join(tail)} ({node.format})"
