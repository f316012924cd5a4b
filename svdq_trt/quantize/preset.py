"""How hard the quantizer searches: one dataclass, three presets, printed at every run."""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """Search settings.

    Attributes:
        name: command-line name.
        grids: steps of alpha in (0, 1); candidates are (0,0), (a,0), (a,1-a): 2·grids - 1 of them.
        tokens: calibration rows the objective uses; 0 = all.
        rows: weight rows the objective uses (evenly spaced); 0 = all.
        power_iterations: of the subspace SVD inside the search and of the final one; 0 = exact SVD.
    """

    name: str
    grids: int
    tokens: int
    rows: int
    search_power_iterations: int
    power_iterations: int

    def describe(self) -> str:
        """One line for the log and the manifest."""
        rows = f"{self.rows} weight rows" if self.rows else "all weight rows"
        tokens = f"{self.tokens} tokens" if self.tokens else "all tokens"
        svd = f"subspace SVD, {self.power_iterations} power iterations" if self.power_iterations else "exact SVD"
        return f"{2 * self.grids - 1} (alpha, beta) candidates on {tokens} x {rows}; {svd}"


PRESETS = {
    p.name: p
    for p in (
        Preset("fast", grids=4, tokens=192, rows=1024, search_power_iterations=1, power_iterations=4),
        Preset("default", grids=10, tokens=0, rows=4096, search_power_iterations=2, power_iterations=8),
        Preset("full", grids=20, tokens=0, rows=0, search_power_iterations=2, power_iterations=0),
    )
}


def get_preset(name: str) -> Preset:
    """Look up a preset; UsageError names the known ones."""
    if name not in PRESETS:
        raise UsageError("--preset", f"'{name}'", f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
