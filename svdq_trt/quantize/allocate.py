"""``--rank auto``: from all nodes' curves and a goal to a rank for each node, in a file that the quantizer reads.

Letters: N output features, K input features, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from svdq_trt.artifact.allocation import Allocation
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.base.errors import RangeError, UsageError
from svdq_trt.base.journal import Journal
from svdq_trt.base.progress import Progress
from svdq_trt.contract.formats import FORMATS, W4A16, Format
from svdq_trt.contract.numerics import CPU
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import LinearGroup
from svdq_trt.quantize.curve import error_curve, node_bytes, ranks_of
from svdq_trt.quantize.spend import KEEP, Option, fit_budget, reach_error, total_bytes, total_error
from svdq_trt.quantize.workers import layer_pool, layer_weights

REASON = "--rank auto: its error costs the output more than its bytes"


@dataclass(frozen=True)
class NodeCurve:
    """A node's sizes and its relative squared error at each rank of curve.ranks_of(n, k).

    `may_keep`: its linears may stay in 16 bit. A linear that several nodes share by columns may not, as it is
    quantized as a whole or not at all.
    """

    n: int
    k: int
    format: str
    may_keep: bool
    errors: tuple[float, ...]

    def option(self, rank: int, gain: float = 1.0) -> Option:
        """The node stored at one of its ranks; `gain` turns its error into the model's."""
        error = self.errors[ranks_of(self.n, self.k).index(rank)]
        return Option(rank, node_bytes(FORMATS[self.format], self.n, self.k, rank), gain * error)

    def options(self, gain: float) -> list[Option]:
        """All ways to store it."""
        found = [self.option(rank, gain) for rank in ranks_of(self.n, self.k)]
        if self.may_keep:
            found.append(Option(KEEP, 2 * self.n * (self.k + 1), 0.0))  # weight and bias
        return found


def measure_curves(
    module: nn.Module,
    groups: Sequence[LinearGroup],
    calibration: Calibration,
    fmt: Format,
    act_dtype: torch.dtype,
    journal: Journal,
    progress: Progress,
    read: Callable[[str], Tensor] | None = None,
    device: torch.device = CPU,
) -> dict[str, NodeCurve]:
    """Measure the curve of every group, several at a time; curves in `journal` are reused.

    Args:
        module: the 16-bit model, not changed. On meta, weights come from `read`, called from several threads.
        fmt: format of groups with quantized activations; weight-only groups take w4a16.
        device: device that the work is done on; each group is moved there when its turn comes.
    """

    def one(group: LinearGroup) -> NodeCurve:
        if group.node in journal.values:
            value = journal.values[group.node]
            return NodeCurve(**value | {"errors": tuple(value["errors"])})
        weights, _ = sources.pop(group.node)()
        w, own = torch.cat([part.to(device).float() for part in weights]), W4A16 if group.weight_only else fmt
        n, k = w.shape
        x, x_absmax = calibration.x[group.node], calibration.amax[group.node]
        errors = error_curve(w, x, x_absmax, own, act_dtype, ranks_of(n, k), group.act_shift)
        if not all(map(math.isfinite, errors)):
            what = f"{act_dtype} overflows inside the quantized linear on calibration inputs"
            raise RangeError(group.node, what, "finite values", "Keep it in 16 bit with --skip.")
        return NodeCurve(n, k, own.name, group.columns is None, tuple(errors))

    curves: dict[str, NodeCurve] = {}
    missing = [group for group in groups if group.node not in journal.values]
    with layer_weights(module, missing, read, device) as sources, layer_pool(device) as pool:
        for group, curve in zip(groups, pool.map(one, groups), strict=True):
            if group.node not in journal.values:
                journal.add(group.node, asdict(curve))
            curves[group.node] = curve
            progress(len(curves), len(groups), group.node)
    return curves


def allocate(
    curves: Mapping[str, NodeCurve],
    budget_bytes: int | None,
    target_sqnr: float | None,
    scan: Sensitivity | None = None,
    gains_name: str = "",
) -> Allocation:
    """Choose all ranks: the least error within `budget_bytes`, or the fewest bytes that reach `target_sqnr` dB.

    Args:
        scan: weighs each node's error by its effect on the model's output. Without it all nodes weigh the same,
            and the figure to reach is the mean of their relative errors.

    Raises:
        UsageError: a budget below the least possible, a target above the best possible, a scan of other nodes.
    """
    gains = _gains(curves, scan)
    options = {node: curve.options(gains[node]) for node, curve in curves.items()}
    if budget_bytes is not None:
        choice = fit_budget(options, budget_bytes)
        if choice is None:
            least = sum(min(o.bytes for o in some) for some in options.values())
            raise UsageError("--budget-bytes", f"{budget_bytes}", f"at least {least}, which the nodes take at rank 0")
    else:
        assert target_sqnr is not None
        choice = reach_error(options, 10 ** (-target_sqnr / 10))
        if choice is None:
            best = decibels(sum(min(o.error for o in some) for some in options.values()))
            raise UsageError("--target-sqnr", f"{target_sqnr:g} dB", f"at most {best:.2f}, the best that is predicted")
    return Allocation(
        budget_bytes,
        target_sqnr,
        gains_name if scan else "",
        total_bytes(choice),
        decibels(total_error(choice)),
        {node: option.rank for node, option in choice.items() if option.rank != KEEP},
        tuple(node for node, option in choice.items() if option.rank == KEEP),
    )


def _gains(curves: Mapping[str, NodeCurve], scan: Sensitivity | None) -> dict[str, float]:
    if scan is None:
        return dict.fromkeys(curves, 1 / max(len(curves), 1))
    found = {effect.node: effect.gain for effect in scan.effects}
    missing = [node for node in curves if node not in found]
    if missing:
        raise UsageError(
            "--sensitivity",
            f"no figures of {missing[0]} ({len(missing)} nodes missing)",
            "a scan of the same model with the same --skip",
        )
    return {node: found[node] for node in curves}
