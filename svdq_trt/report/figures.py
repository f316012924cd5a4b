"""The report's plots, each one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from svdq_trt.quantize.artifact import Node
from svdq_trt.quantize.sensitivity import Sensitivity
from svdq_trt.report.analyse import LayerReport, kind


def layers(nodes: Sequence[Node]) -> bytes:
    """SQNR of every node in graph order, one colour a kind."""
    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    kinds = sorted({kind(n.name) for n in nodes})
    for i, name in enumerate(kinds):
        points = [(j, n.sqnr_db) for j, n in enumerate(nodes) if kind(n.name) == name]
        axis.plot(*zip(*points, strict=True), ".", color=_colour(i), label=name, markersize=5)
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


def sensitivity(found: Sensitivity) -> bytes:
    """Two panels: what each node alone does to the output, in graph order, and the worst nodes by name."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5), width_ratios=(1.6, 1), layout="constrained")
    effects = found.effects
    powers = [10 ** (-e.output_db / 10) for e in effects]
    kinds = sorted({kind(e.node) for e in effects})
    for i, name in enumerate(kinds):
        points = [(j, p) for j, (e, p) in enumerate(zip(effects, powers, strict=True)) if kind(e.node) == name]
        left.bar(*zip(*points, strict=True), color=_colour(i), label=name)
    left.set(xlabel="node, in graph order", ylabel="error power / output power", yscale="log",
             title=f"{found.model} {found.format}, rank {found.rank}: each node quantized alone")  # fmt: skip
    left.axhline(10 ** (-found.measured_db / 10), color="k", linewidth=0.8, linestyle="--")
    left.annotate("all nodes quantized", (0, 10 ** (-found.measured_db / 10)), fontsize=8, xytext=(2, 3),
                  textcoords="offset points")  # fmt: skip
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    worst = sorted(zip(powers, effects, strict=True), key=lambda pair: -pair[0])[:20][::-1]
    total = sum(powers) or 1.0
    right.barh([_short(e.node) for _, e in worst], [100 * p / total for p, _ in worst],
               color=[_colour(kinds.index(kind(e.node))) for _, e in worst])  # fmt: skip
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="share of the sum [%]", title="the worst nodes")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="y" if axis is left else "x")
    return _png(figure)


def _short(name: str) -> str:
    """A module path that fits beside a bar."""
    for long, brief in (("transformer_blocks", "blocks"), ("attentions", "attn"), ("single_blocks", "single")):
        name = name.replace(long, brief)
    return name if len(name) <= 44 else f"...{name[-41:]}"


def _colour(index: int) -> Any:
    return plt.get_cmap("tab20")(index % 20)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()
