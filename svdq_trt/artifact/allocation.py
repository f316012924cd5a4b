"""allocation.json: the ranks that ``--rank auto`` chose, and the goal that they meet."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from svdq_trt.artifact.manifest import AllocationEntry
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object


@dataclass(frozen=True)
class Allocation:
    """The ranks chosen, and the goal that they meet.

    Attributes:
        budget_bytes, target_sqnr: what was asked for; one of them is None.
        gains: source of the nodes' weights: the scan's file name, or "" for equal weights.
        bytes: size of all nodes, those kept in 16 bit included. error_db: predicted SQNR of the model's output with a
            scan; without one, of the nodes' outputs on average.
        ranks: node -> R. kept: nodes whose linears stay in 16 bit.
    """

    budget_bytes: int | None
    target_sqnr: float | None
    gains: str
    bytes: int
    error_db: float
    ranks: dict[str, int]
    kept: tuple[str, ...]

    def summary(self) -> AllocationEntry:
        """The entry for metadata and manifests, which list the ranks elsewhere."""
        return AllocationEntry(**{name: value for name, value in asdict(self).items() if name != "ranks"})

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Allocation:
        """Read what `save` wrote. Raises ArtifactError: missing or damaged."""
        data = read_json_object(path, "an allocation")
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ArtifactError(str(path), f"damaged ({error})", "an allocation", "Build with --force.") from None


def describe(summary: AllocationEntry) -> str:
    """One line for people."""
    asked = f"{summary.target_sqnr} dB" if summary.budget_bytes is None else f"{summary.budget_bytes:,} bytes"
    what = "at the output" if summary.gains else "in the nodes, on average"
    kept = f", {len(summary.kept)} of them in 16 bit" if summary.kept else ""
    return f"{summary.bytes:,} bytes in all nodes{kept}; {summary.error_db:.1f} dB predicted {what}; asked for {asked}"
