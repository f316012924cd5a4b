"""The quantizer's search effort: one dataclass, three presets, printed at every run."""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.base.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """Search settings.

    Attributes:
        name: command-line name.
        grids: steps of alpha in (0, 1); candidates are (0,0), (a,0), (a,1-a): 2·grids - 1 of them.
        tokens: calibration rows the objective uses, at most, evenly spaced; 0 = all.
        rows: weight rows the objective uses, likewise.
        power_iterations: of the subspace SVD inside the search and of the final one; 0 = exact SVD.
        iterations: maximum number of alternations of SVD and rounding; 0 = none.
        scales: group scales by search instead of absmax.
        gptq: error feedback in the final rounding.
        refit: fit the low-rank part again after the final rounding, weighted by the activations.
        rounds: maximum number of repetitions of GPTQ and refit.
        dampings: factors on the damping of GPTQ's second moments, each tried.
        finalists: candidates of the smoothing search that climb the whole ladder; the best result is taken.
        cpu_times_fast: seconds per layer on a CPU as a multiple of those of ``fast`` (sdxl-tiny, two cores;
            benchmarks/quantize_cost.py).
    """

    name: str
    grids: int
    tokens: int
    rows: int
    search_power_iterations: int
    power_iterations: int
    iterations: int = 0
    scales: bool = False
    gptq: bool = False
    refit: bool = False
    rounds: int = 1
    dampings: tuple[float, ...] = (1.0,)
    finalists: int = 1
    cpu_times_fast: int = 1

    def describe(self) -> str:
        """One line for people."""
        rows = f"{self.rows} weight rows" if self.rows else "all weight rows"
        tokens = f"{self.tokens} tokens" if self.tokens else "all tokens"
        svd = f"subspace SVD, {self.power_iterations} power iterations" if self.power_iterations else "exact SVD"
        steps = [f"{2 * self.grids - 1} (alpha, beta) candidates on {tokens} x {rows}; {svd}"]
        if self.iterations:
            steps.append(f"up to {self.iterations} SVD/rounding iterations")
        if self.scales:
            steps.append("scale search")
        if self.gptq:
            times = [f"{len(self.dampings)} dampings"] if len(self.dampings) > 1 else []
            times += [f"up to {self.rounds} rounds"] if self.rounds > 1 else []
            steps.append("GPTQ" + (f" ({', '.join(times)})" if times else ""))
        if self.refit:
            steps.append("activation-weighted low-rank refit")
        if self.finalists > 1:
            steps.append(f"the best {self.finalists} candidates taken to the end")
        return "; ".join(steps) + ("; each rung kept only if better on held-out tokens" if len(steps) > 1 else "")

    def search_line(self, device: str) -> str:
        """One line for the start of a run on `device`, "cpu" or "cuda": the search and, on a CPU, what it costs."""
        if device != "cpu":
            return f"search: {self.name}: {self.describe()}; on the GPU"
        line = f"search: {self.name}: {self.describe()}; on the CPU"
        if self.cpu_times_fast == 1:
            return line
        return f"{line}, where it takes about {self.cpu_times_fast} times as long as --preset fast"


PRESETS = {
    p.name: p
    for p in (
        Preset("fast", grids=4, tokens=256, rows=1024, search_power_iterations=1, power_iterations=4),
        Preset(
            "default",
            grids=6,
            tokens=0,
            rows=1024,
            search_power_iterations=2,
            power_iterations=8,
            iterations=4,
            scales=True,
            gptq=True,
            refit=True,
            dampings=(1.0, 4.0),
            cpu_times_fast=5,
        ),
        Preset(
            "best",
            grids=20,
            tokens=0,
            rows=0,
            search_power_iterations=2,
            power_iterations=0,
            iterations=100,
            scales=True,
            gptq=True,
            refit=True,
            rounds=3,
            dampings=(1.0, 0.1, 4.0),
            finalists=3,
            cpu_times_fast=40,
        ),
    )
}

#: the preset that is used unless another is named
DEFAULT_PRESET = "default"


def get_preset(name: str) -> Preset:
    """Look up a preset; UsageError names the known ones."""
    if name not in PRESETS:
        raise UsageError("--preset", f"'{name}'", f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
