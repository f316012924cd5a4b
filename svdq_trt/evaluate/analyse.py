"""A closer look at one node: where its error comes from, its spectra, and the effect of its rank.

Letters: N output features, K input features, R rank, T calibration tokens. W_s = W / act_mul.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sqnr import decibels
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import Preset

RANKS = (0, 16, 32, 64, 128)
_SWEEP = Preset("report", grids=3, tokens=256, rows=512, search_power_iterations=1, power_iterations=2)


@dataclass(frozen=True)
class NodeReport:
    """One node's figures.

    Attributes:
        spectra: "W", "smoothed W", "residual" -> singular values, descending.
        split: result of error_split.
        sweep: (rank, SQNR in dB, bytes of the node) with a plain SVD.
    """

    node: Node
    spectra: dict[str, list[float]]
    split: dict[str, float]
    sweep: list[tuple[int, float, int]]


def error_split(node: Node, tensors: dict[str, Tensor], w: Tensor, x: Tensor) -> dict[str, float]:
    """SQNR in dB with only "activations", only "weights", or "both" quantized. Arguments as `analyse`."""
    parts = _Parts(node, tensors, w)
    hat, low_rank = numerics.smooth(x, parts.mul), numerics.project_down(x, parts.down) @ parts.up.T
    shifted = numerics.smooth(x, parts.mul, node.act_shift)
    quantized = numerics.fake_quantize_act(shifted, FORMATS[node.format], node.act_unsigned)
    quantized = quantized - node.act_shift * parts.mul  # which the bias subtracts in the node
    want = x.float() @ w.float().T
    energy = float(want.square().sum()) or 1.0

    def sqnr(activations: Tensor, weight: Tensor) -> float:
        return decibels(float((activations @ weight.T + low_rank - want).square().sum()) / energy)

    return {
        "activations": sqnr(quantized, parts.rest),
        "weights": sqnr(hat.float(), parts.residual),
        "both": sqnr(quantized, parts.residual),
    }


class _Parts:
    """The parts into which a node's weight was split.

    Attributes:
        mul: [K] act_mul. down, up: [R, K], [N, R]. residual: [N, K] values of the codes, in smoothed space.
        smoothed: [N, K] W_s. rest: [N, K] W_s less the low-rank part, which the codes had to represent.
    """

    def __init__(self, node: Node, tensors: dict[str, Tensor], w: Tensor) -> None:
        weights = node.weights(tensors)
        self.residual = weights.unpack()
        self.mul, self.down, self.up = weights.act_mul.float(), weights.lora_down.float(), weights.lora_up.float()
        self.smoothed = w.float() / self.mul
        self.rest = self.smoothed - self.up @ (self.down / self.mul)


def analyse(node: Node, tensors: dict[str, Tensor], w: Tensor, x: Tensor, x_absmax: Tensor) -> NodeReport:
    """Compute the figures of a node.

    Args:
        tensors: the artifact's tensors by name. w: [N, K] original weight, members stacked.
        x: [T, K] calibration tokens in the act dtype. x_absmax: [K].
    """
    parts, fmt, w = _Parts(node, tensors, w), FORMATS[node.format], w.float()
    same: dict[str, Any] = {"act_dtype": x.dtype, "x_absmax": x_absmax, "act_shift": node.act_shift}
    sweep = []
    for rank in RANKS:
        q = quantize_group([w], [None], x, fmt, rank, preset=_SWEEP, **same)
        sweep.append((rank, q.sqnr_db, q.weights.nbytes))
    spectra = {"W": _singular(w), "smoothed W": _singular(parts.smoothed), "residual": _singular(parts.rest)}
    return NodeReport(node, spectra, error_split(node, tensors, w, x), sweep)


def _singular(w: Tensor) -> list[float]:
    """All singular values, from the eigenvalues of the smaller Gram matrix in fp64."""
    w = w.double() if w.shape[0] >= w.shape[1] else w.T.double()
    values = torch.linalg.eigvalsh(w.T @ w).flip(0).clamp_min(0).sqrt()
    return [float(v) for v in values]


def representative(nodes: tuple[Node, ...], count: int) -> list[Node]:
    """Choose `count` nodes: one of every kind, the worst ones first; then the worst of the rest.

    A kind is the part after the last number in the name (``attn1.to_qkv``), format included.
    """
    ordered = sorted(nodes, key=lambda n: n.sqnr_db)
    first: dict[str, Node] = {}
    for node in ordered:
        first.setdefault(kind(node.name), node)
    chosen = list(first.values())
    chosen += [n for n in ordered if n not in chosen]
    return chosen[:count]


def kind(name: str) -> str:
    """The kind of a node: its name inside a block, ``attn1.to_qkv`` or ``ff.net.2``."""
    parts = name.removesuffix(".0").split(".")
    tail = parts[-3:] if parts[-1].isdigit() else parts[-2:]
    return ".".join(p for i, p in enumerate(tail) if not (p.isdigit() and i == 0))
