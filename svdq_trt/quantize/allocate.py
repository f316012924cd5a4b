"""``--rank auto``: from curves of all nodes and what is wanted to a rank for each, as a file that the quantizer reads.

Letters: N output features, K input features, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.calibrate import Calibration
from svdq_trt.calibrate.upcast import CPU
from svdq_trt.compile.events import Progress
from svdq_trt.errors import ArtifactError, UsageError
from svdq_trt.files import atomic_write, read_json_object
from svdq_trt.journal import Journal
from svdq_trt.models import LinearGroup
from svdq_trt.quantize.curve import error_curve, node_bytes, ranks_of
from svdq_trt.quantize.ladder import decibels
from svdq_trt.quantize.sensitivity import Sensitivity
from svdq_trt.quantize.spend import KEEP, Option, fit_budget, reach_error, total_bytes, total_error
from svdq_trt.quantize.workers import layer_pool, layer_weights
from svdq_trt.spec.formats import FORMATS, W4A16, Format

REASON = "--rank auto: its error costs the output more than its bytes"


@dataclass(frozen=True)
class NodeCurve:
    """A node's sizes and its relative squared error at each rank of curve.ranks_of(n, k).

    `may_keep`: its linears may stay in 16 bit. A linear that several nodes share by columns may not: it is quantized
    as a whole or not at all.
    """

    n: int
    k: int
    format: str
    may_keep: bool
    errors: tuple[float, ...]

    def option(self, rank: int, gain: float = 1.0) -> Option:
        """The node at one of its ranks; `gain` turns its error into the model's."""
        error = self.errors[ranks_of(self.n, self.k).index(rank)]
        return Option(rank, node_bytes(FORMATS[self.format], self.n, self.k, rank), gain * error)

    def options(self, gain: float) -> list[Option]:
        """All ways to store it."""
        found = [self.option(rank, gain) for rank in ranks_of(self.n, self.k)]
        if self.may_keep:
            found.append(Option(KEEP, 2 * self.n * (self.k + 1), 0.0))  # weight and bias
        return found


@dataclass(frozen=True)
class Allocation:
    """What was chosen, and for what.

    Attributes:
        budget_bytes, target_sqnr: what was asked for; one of them is None.
        gains: where the nodes' weights came from: the scan's file name, or "" for equal weights.
        bytes: of all nodes, those kept in 16 bit included. error_db: predicted SQNR, of the model's output with a scan;
            without one, of the nodes' outputs on average.
        ranks: node -> R. kept: nodes whose linears stay in 16 bit.
    """

    budget_bytes: int | None
    target_sqnr: float | None
    gains: str
    bytes: int
    error_db: float
    ranks: dict[str, int]
    kept: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For metadata and manifests, which list the ranks elsewhere."""
        return {name: value for name, value in asdict(self).items() if name != "ranks"} | {"kept": list(self.kept)}

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Allocation:
        """Read what `save` wrote. Raises ArtifactError: missing or damaged."""
        data = read_json_object(path, "an allocation")
        try:
            return cls(**data | {"kept": tuple(data["kept"])})
        except (KeyError, TypeError) as error:
            raise ArtifactError(str(path), f"damaged ({error})", "an allocation", "Build with --force.") from None


def describe(summary: Mapping[str, Any]) -> str:
    """One line for people, of Allocation.summary()."""
    budget, target = summary.get("budget_bytes"), summary.get("target_sqnr")
    asked = f"{target} dB" if budget is None else f"{budget:,} bytes"
    what = "at the output" if summary["gains"] else "in the nodes, on average"
    kept = f", {len(summary['kept'])} of them in 16 bit" if summary["kept"] else ""
    return (
        f"{summary['bytes']:,} bytes in all nodes{kept}; {summary['error_db']:.1f} dB predicted {what}; "
        f"asked for {asked}"
    )


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
    """The curve of every group, several at a time; those that `journal` has are taken over.

    Args:
        module: the 16-bit model, not changed. On meta, weights are had from `read`, from several threads.
        fmt: of groups with quantized activations; weight-only groups take w4a16.
        device: where the layers are worked on, each moved there when its turn comes.
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
    """Choose for all nodes: the least error within `budget_bytes`, or the fewest bytes that reach `target_sqnr` dB.

    Args:
        scan: weighs each node's error by what it does to the model's output. Without it all nodes weigh the same,
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
