"""What a run's outcome and the server's statistics say, and what of it is a fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving_bench.clients import Outcome
from serving_bench.memory import SAMPLES, growth


def row(clients: int, outcome: Outcome, alone: Outcome, statistics: dict[str, Any]) -> dict[str, Any]:
    """Figures of a run, as JSON has them.

    Args:
        alone: the same pictures asked for one by one. statistics: see `since`.
    """
    p50, p90, p99 = (float(np.percentile(outcome.seconds or [0], p)) for p in (50, 90, 99))
    return {
        "clients": clients,
        "pictures": len(outcome.seconds),
        "pictures_per_s": len(outcome.seconds) / outcome.wall_s,
        "latency_s": {"p50": p50, "p90": p90, "p99": p99},
        **statistics,
        **{name: getattr(outcome, name) for name in ("refused", "lost", "spoilt", "malformed", "sent", "killed")},
        **_compared(outcome, alone),
        "memory_mb": outcome.memory,
        "growth_mb": {name: growth(samples) for name, samples in outcome.memory.items()},
    }


def since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Of Triton's statistics of a model at two times: batches by their size, their mean, the mean time in the queue."""
    batches = {one["batch_size"]: one["compute_infer"]["count"] for one in after["batch_stats"]}
    for one in before["batch_stats"]:
        batches[one["batch_size"]] -= one["compute_infer"]["count"]
    queue, earlier = (one["inference_stats"]["queue"] for one in (after, before))
    waited = (queue["ns"] - earlier["ns"]) / 1e9 / max(1, queue["count"] - earlier["count"])
    mean = sum(size * count for size, count in batches.items()) / max(1, sum(batches.values()))
    return {"batches": batches, "batch_mean": mean, "queue_s": waited}


def faults(row: dict[str, Any], most_growth_mb: float) -> list[str]:
    """A sentence for everything that should not have been."""
    said = {
        "lost": "requests without an answer",
        "refused": "requests that were refused",
        "spoilt": "answers that are no picture of the size asked for",
        "malformed": "malformed requests that were not refused for what they are",
    }
    found = [f"{len(row[name])} {what}, the first: {row[name][0]}" for name, what in said.items() if row[name]]
    if row["foreign"]:
        found.append(f"{row['foreign']} pictures that are nearer to another request's")
    for name, grown in row["growth_mb"].items():
        if grown > most_growth_mb:
            found.append(f"memory of {name} grew by {grown:.1f} MB, want at most {most_growth_mb:g}")
    return [f"{row['clients']} clients: {one}" for one in found]


def _compared(outcome: Outcome, alone: Outcome) -> dict[str, Any]:
    """How many pictures differ from the one that the same request alone has got, by how much, and whose they are."""
    own = [alone.images[next(iter(answers))] for answers in alone.answers]
    differing, foreign, most = 0, 0, 0.0
    for place, answers in enumerate(outcome.answers):
        for digest, count in answers.items():
            if digest in alone.answers[place]:
                continue
            errors = [_rms(outcome.images[digest], image) for image in own]
            differing += count
            foreign += count * (errors[place] > min(errors))
            most = max(most, errors[place])
    return {"differing": differing, "foreign": foreign, "largest_rms": most}


def _rms(one: np.ndarray, other: np.ndarray) -> float:
    """Root of the mean squared difference of two pictures, of 255 levels."""
    return float(np.sqrt(np.mean((one.astype(np.float32) - other) ** 2)))


#: above the lines of `speed`
HEAD = f"""{"":7} {"pictures":>8} {"latency, s":^23} {"queued,":>7}  mean {"":12} diffe- largest
clients {"per s":>8} {"p50":>7} {"p90":>7} {"p99":>7} {"s":>7} batch refused lost   ring     rms"""


def speed(row: dict[str, Any]) -> str:
    """A run's line for a terminal."""
    latency = " ".join(f"{seconds:7.3f}" for seconds in row["latency_s"].values())
    return (
        f"{row['clients']:7} {row['pictures_per_s']:8.3f} {latency} {row['queue_s']:7.3f} {row['batch_mean']:5.2f} "
        f"{len(row['refused']):7} {len(row['lost']):4} {row['differing']:6} {row['largest_rms']:7.2f}"
    )


def memory(rows: Sequence[dict[str, Any]]) -> str:
    """The memory of all runs for a terminal."""
    lines = ["MB after every tenth of the requests, and the growth from the second fifth to the last"]
    for row in rows:
        for name, samples in row["memory_mb"].items():
            tenths = " ".join(f"{sample:8.1f}" for sample in samples[SAMPLES // 10 - 1 :: SAMPLES // 10])
            lines.append(f"{row['clients']:7} {name:6} {tenths} {row['growth_mb'][name]:+8.1f}")
    return "\n".join(lines)
