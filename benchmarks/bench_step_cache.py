#!/usr/bin/env python3
"""What a step cache saves: times of head, tail and end, of steps with and without the tail, and of a loop of both.

    python benchmarks/bench_step_cache.py engines/flux1-dev-sm_90 --skipped 10
    python benchmarks/bench_step_cache.py engines/flux1-dev-sm_90 --whole engines-whole/flux1-dev-sm_90 --threshold 0.1

The engine is one of `svdq-trt build --step-cache`; --whole is one in one piece, timed in the same run. With random
weights a threshold means nothing: --skipped says how many of the steps go without the tail, spread evenly. Inputs are
synthetic, on the GPU, at the sizes that the engine is tuned for. A time is from inputs to outputs between CUDA events.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import script
import torch
from bench_options import need_gpu

from svdq_trt.bench.clock import CudaClock, percentiles
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.runtime import Session
from svdq_trt.runtime.part import Part

ALWAYS = 1e30  # a threshold at which every step is skipped that has one before it


def main() -> int:
    args = _arguments()
    need_gpu()
    clock = CudaClock(args.device)
    options = {"device": args.device, "cuda_graph": args.graph, "memory": "torch"}
    options |= {name: getattr(args, name) for name in ("allow_host_code", "allow_arch_mismatch")}
    with clock.running(), Session(args.engine, **options) as session:
        spec = get_model(session.model)
        sizes = spec.built_sizes(session.manifest, 1)
        feeds = [_feed(spec, sizes, 1 - i / args.steps, clock.device) for i in range(args.steps)]
        calls = _calls(session, feeds, args.skipped)
        if args.threshold is not None:
            calls["loop_at_threshold"] = _loop(session, feeds, set(), args.threshold)
        whole = None if args.whole is None else Session(args.whole, **options)
        if whole is not None:
            calls["one_piece"] = lambda: whole.run(feeds[0])
        found: dict[str, Any] = {}
        for name, call in calls.items():
            repeat = max(1, args.repeat // args.steps) if name.startswith("loop") else args.repeat
            found[name] = {k: round(ms, 4) for k, ms in percentiles(clock.times(call, repeat)).items()}
            print(f"{name:20} {found[name]['median']:10.3f} ms", flush=True)
        report = {"engine": session.manifest.model, "gpu": clock.gpu, "sizes": sizes, "steps": args.steps, "ms": found}
        if args.threshold is not None:
            before = session.skipped
            calls["loop_at_threshold"]()
            report |= {"threshold": args.threshold, "skipped_at_threshold": session.skipped - before}
            print(f"skipped at {args.threshold:g}: {report['skipped_at_threshold']} of {args.steps}")
        report["skipped"] = args.skipped
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _calls(session: Session, feeds: list[dict[str, torch.Tensor]], skipped: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the steps with all blocks first, whose tensors the pieces read."""
    steps = len(feeds)
    spread = {round((i + 1) * steps / (skipped + 1)) for i in range(skipped)}
    return {
        "step": _loop(session, feeds[:1], set(), 0.0),
        **{name: _part(session, part) for name, part in zip(("head", "tail", "end"), session.parts, strict=True)},
        "step_computed": _loop(session, feeds[:1], {0}, ALWAYS),  # and kept
        "step_skipped": _loop(session, feeds[:1], set(), ALWAYS),
        f"loop_{skipped}_of_{steps}": _loop(session, feeds, set(range(steps)) - spread, ALWAYS),
        f"loop_0_of_{steps}": _loop(session, feeds, set(), 0.0),
    }


def _loop(
    session: Session, feeds: list[dict[str, torch.Tensor]], computed: set[int], threshold: float
) -> Callable[[], None]:
    """The steps one after the other; those in `computed` compare with none."""

    def run() -> None:
        if session.step_cache != threshold:
            session.step_cache = threshold
        for i, feed in enumerate(feeds):
            if i in computed or (len(feeds) > 1 and i == 0):
                session.reset()
            session.run(feed)

    return run


def _part(session: Session, part: Part) -> Callable[[], None]:
    def run() -> None:
        with session._memory.running():
            part.run(session.cuda_graph)

    return run


def _feed(spec: ModelSpec, sizes: dict[str, Any], noise: float, device: str) -> dict[str, torch.Tensor]:
    values = spec.example_inputs(**sizes, noise=noise)
    return {io.name: value.to(device) for io, value in zip(spec.inputs, values, strict=True)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path, help="folder of an engine that was built with --step-cache")
    parser.add_argument("--whole", type=Path, help="folder of an engine of the same model in one piece")
    parser.add_argument("--steps", type=int, default=28, help="of a loop (%(default)s)")
    parser.add_argument("--skipped", type=int, default=10, help="of them without the tail (%(default)s)")
    parser.add_argument("--threshold", type=float, help="also a loop in which the session decides")
    parser.add_argument("--repeat", type=int, default=50, help="timed calls; of a loop, steps (%(default)s)")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="launch kernels one by one")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--allow-host-code", action="store_true")
    parser.add_argument("--allow-arch-mismatch", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    if not 0 <= args.skipped < args.steps:
        sys.exit(f"--skipped {args.skipped}: want fewer than --steps {args.steps}")
    return args


if __name__ == "__main__":
    script.run(main)
