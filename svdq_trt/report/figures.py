"""The report's plots, each one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from svdq_trt.quantize.artifact import Node
from svdq_trt.report.analyse import LayerReport, kind


def layers(nodes: Sequence[Node]) -> bytes:
    """SQNR of every node in graph order, one colour a kind."""
    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    kinds = sorted({kind(n) for n in nodes})
    for i, name in enumerate(kinds):
        points = [(j, n.sqnr_db) for j, n in enumerate(nodes) if kind(n) == name]
        axis.plot(*zip(*points, strict=True), ".", color=plt.get_cmap("tab20")(i % 20), label=name, markersize=5)
    axis.set(xlabel="node, in graph order", ylabel="SQNR of the output [dB]")
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    return _png(figure)


def sizes(parts: Mapping[str, int], fp16: int) -> bytes:
    """Stacked bytes of the quantized model beside the 16-bit one."""
    figure, axis = plt.subplots(figsize=(11, 2.2), layout="constrained")
    left = 0.0
    for i, (name, count) in enumerate(parts.items()):
        axis.barh(0, count / 1e6, left=left, color=plt.get_cmap("tab10")(i % 10), label=name)
        left += count / 1e6
    axis.barh(1, fp16 / 1e6, color="0.7")
    axis.set_yticks([0, 1], ["quantized", "16 bit"])
    axis.set_xlabel("weights [MB]")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=5)
    return _png(figure)


def one_layer(report: LayerReport) -> bytes:
    """Four panels: spectra, error split, smoothing search, rank sweep."""
    figure, (a, b, c, d) = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for name, values in report.spectra.items():
        a.semilogy(range(1, len(values) + 1), [max(v, 1e-12) for v in values], label=name)
    floor = 0.3 * min(values[len(values) * 9 // 10] for values in report.spectra.values()) or 1e-6
    a.set(xlabel="index", title="singular values", xscale="log", ylim=(max(floor, 1e-9), None))
    a.axvline(max(report.node.rank, 1), color="0.6", linewidth=0.8, linestyle="--")
    a.legend(fontsize=8)
    b.bar(list(report.split), list(report.split.values()), color=["tab:blue", "tab:orange", "tab:gray"])
    b.set(ylabel="SQNR [dB]", title="with only ... quantized")
    for beta_zero, marker, label in ((True, "o-", "beta = 0"), (False, "s-", "beta = 1 - alpha")):
        points = [(alpha, db) for alpha, beta, db in report.curve if (beta == 0) == beta_zero]
        if points:
            c.plot(*zip(*points, strict=True), marker, markersize=3, label=label)
    c.axvline(report.node.alpha, color="0.6", linewidth=0.8, linestyle="--")
    c.set(xlabel="alpha", ylabel="SQNR [dB]", title="smoothing search")
    c.legend(fontsize=8)
    d.plot([r for r, _, _ in report.sweep], [db for _, db, _ in report.sweep], "o-", markersize=4)
    for rank, db, size in report.sweep:
        d.annotate(f"{size / 1e6:.2f} MB", (rank, db), fontsize=7, textcoords="offset points", xytext=(3, -9))
    d.set(xlabel="rank", ylabel="SQNR [dB]", title="rank sweep, plain SVD")
    for axis in (a, b, c, d):
        axis.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()
