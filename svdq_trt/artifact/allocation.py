"""allocation.json: the ranks that ``--rank auto`` chose, and for what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object


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
