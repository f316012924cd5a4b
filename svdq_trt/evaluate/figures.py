"""The report's plots, each one PNG."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, MultipleLocator

from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.contract.formats import R_MULTIPLE
from svdq_trt.evaluate.analyse import NodeReport, kind
from svdq_trt.evaluate.pictures import plt

_PART_COLOURS = {"activations": "tab:blue", "weights": "tab:orange", "both": "tab:gray"}


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


def split(nodes: Sequence[Node], splits: Mapping[str, Mapping[str, float]]) -> bytes:
    """Every node's SQNR with activations alone quantized, with weights alone, and with both, in graph order."""
    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    for part, marker in (("activations", "^"), ("weights", "s"), ("both", ".")):
        values = [splits[n.name][part] for n in nodes]
        axis.plot(range(len(nodes)), values, marker, color=_PART_COLOURS[part], markersize=4, label=part)
    for j, n in enumerate(nodes):
        parts = splits[n.name]
        axis.plot([j, j], [parts["both"], min(parts["activations"], parts["weights"])], color="0.8", linewidth=0.7)
    axis.set(xlabel="node, in graph order", ylabel="SQNR with only ... quantized [dB]", ylim=(None, _most_db(splits)))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _png(figure)


def alphas(nodes: Sequence[Node]) -> bytes:
    """The cost of the exponent: dB below each node's best trial, by alpha, over all nodes; and the alphas chosen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1.6, 1), layout="constrained")
    for beta_zero, label in ((True, "beta = 0"), (False, "beta = 1 - alpha")):
        lost: dict[float, list[float]] = {}
        for n in nodes:
            best = max((db for _, _, db in n.trials), default=0.0)
            for alpha, beta, db in n.trials:
                if (beta == 0) == beta_zero:
                    lost.setdefault(alpha, []).append(best - db)
        steps = sorted(lost)
        if steps:
            low, middle, high = (np.array([np.percentile(lost[a], p) for a in steps]) for p in (10, 50, 90))
            (line,) = left.plot(steps, middle, "o-", markersize=3, label=f"{label}: median")
            left.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, label="10 to 90 % of the nodes")
    left.set(xlabel="alpha", ylabel="dB below the node's best", title="smoothing search, all nodes")
    left.invert_yaxis()
    left.legend(fontsize=8)
    taken = Counter((n.alpha, n.beta) for n in nodes if n.trials)
    names = [f"{alpha:.2f}, {beta:.2f}" for alpha, beta in sorted(taken)]
    right.barh(names, [taken[pair] for pair in sorted(taken)])
    right.set(xlabel="nodes", title="alpha, beta taken")
    right.tick_params(axis="y", labelsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return _png(figure)


def ranks(nodes: Sequence[Node], kept: int) -> bytes:
    """The rank of every node in graph order, and how many have which; `kept` nodes are in 16 bit instead."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1.8, 1), layout="constrained")
    kinds = sorted({kind(n.name) for n in nodes})
    for i, name in enumerate(kinds):
        points = [(j, n.rank) for j, n in enumerate(nodes) if kind(n.name) == name]
        left.vlines([j for j, _ in points], 0, [r for _, r in points], color=_colour(i), linewidth=1.5)
        left.plot(*zip(*points, strict=True), "o", color=_colour(i), markersize=4, label=name)
    left.set(xlabel="node, in graph order", ylabel="rank")
    counts = Counter(n.rank for n in nodes)
    names = [str(rank) for rank in sorted(counts)] + (["16 bit"] if kept else [])
    right.bar(names, [counts[rank] for rank in sorted(counts)] + ([kept] if kept else []))
    right.set(xlabel="rank", ylabel="nodes")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_locator(MultipleLocator(R_MULTIPLE))
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    return _png(figure)


def rank_sweep(reports: Sequence[NodeReport]) -> bytes:
    """The benefit of rank for some nodes, in dB above rank 0: by rank, and by bytes relative to rank 0."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, report in enumerate(reports):
        _, base, size = report.sweep[0]
        gains = [db - base for _, db, _ in report.sweep]
        left.plot(
            [r for r, _, _ in report.sweep], gains, "o-", color=_colour(i), markersize=3, label=_short(report.node.name)
        )
        right.plot([bytes_ / size for _, _, bytes_ in report.sweep], gains, "o-", color=_colour(i), markersize=3)
    left.set(xlabel="rank", ylabel="dB above rank 0", title="rank sweep, plain SVD")
    right.set(xlabel="bytes of the node / bytes at rank 0", title="the same, by its price")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=3)
    return _png(figure)


def one_layer(report: NodeReport) -> bytes:
    """Four panels: spectra, error split, smoothing search, rank sweep."""
    figure, (a, b, c, d) = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for name, values in report.spectra.items():
        a.semilogy(range(1, len(values) + 1), [max(v, 1e-12) for v in values], label=name)
    floor = 0.3 * min(values[len(values) * 9 // 10] for values in report.spectra.values()) or 1e-6
    a.set(xlabel="index", title="singular values", xscale="log", ylim=(max(floor, 1e-9), None))
    a.axvline(max(report.node.rank, 1), color="0.6", linewidth=0.8, linestyle="--")
    a.legend(fontsize=8)
    b.bar(list(report.split), list(report.split.values()), color=[_PART_COLOURS[part] for part in report.split])
    b.set(ylabel="SQNR [dB]", title="with only ... quantized")
    for beta_zero, marker, label in ((True, "o-", "beta = 0"), (False, "s-", "beta = 1 - alpha")):
        points = [(alpha, db) for alpha, beta, db in report.node.trials if (beta == 0) == beta_zero]
        if points:
            c.plot(*zip(*points, strict=True), marker, markersize=3, label=label)
    if report.node.trials:
        c.axvline(report.node.alpha, color="0.6", linewidth=0.8, linestyle="--")
        c.legend(fontsize=8)
    c.set(xlabel="alpha", ylabel="SQNR [dB]", title="smoothing search" if report.node.trials else "not recorded")
    d.plot([r for r, _, _ in report.sweep], [db for _, db, _ in report.sweep], "o-", markersize=4)
    for rank, db, size in report.sweep:
        d.annotate(f"{size / 1e6:.2f} MB", (rank, db), fontsize=7, textcoords="offset points", xytext=(3, -9))
    d.set(xlabel="rank", ylabel="SQNR [dB]", title="rank sweep, plain SVD")
    for axis in (a, b, c, d):
        axis.grid(alpha=0.3)
    return _png(figure)


def sensitivity(found: Sensitivity) -> bytes:
    """Two panels: the effect of each node alone on the output, in graph order, and the worst nodes by name."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5), width_ratios=(1.6, 1), layout="constrained")
    effects = found.effects
    powers = [10 ** (-e.output_db / 10) for e in effects]
    kinds = sorted({kind(e.node) for e in effects})
    for i, name in enumerate(kinds):
        points = [(j, p) for j, (e, p) in enumerate(zip(effects, powers, strict=True)) if kind(e.node) == name]
        left.bar(*zip(*points, strict=True), color=_colour(i), label=name)
    left.set(
        xlabel="node, in graph order",
        ylabel="error power / output power",
        yscale="log",
        title=f"{found.model} {found.format}, rank {found.rank}: each node quantized alone",
    )
    left.axhline(10 ** (-found.measured_db / 10), color="k", linewidth=0.8, linestyle="--")
    left.annotate(
        "all nodes quantized",
        (0, 10 ** (-found.measured_db / 10)),
        fontsize=8,
        xytext=(2, 3),
        textcoords="offset points",
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=7)
    worst = sorted(zip(powers, effects, strict=True), key=lambda pair: -pair[0])[:20][::-1]
    total = sum(powers) or 1.0
    right.barh(
        [_short(e.node) for _, e in worst],
        [100 * p / total for p, _ in worst],
        color=[_colour(kinds.index(kind(e.node))) for _, e in worst],
    )
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="share of the sum [%]", title="the worst nodes")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="y" if axis is left else "x")
    return _png(figure)


def _most_db(splits: Mapping[str, Mapping[str, float]]) -> float:
    """The top of the axis: a weight-only node's activations are exact, at 300 dB or so, and would flatten the rest."""
    return 1.15 * max((parts["both"] for parts in splits.values()), default=1.0) + 15


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
