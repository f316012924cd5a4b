#!/usr/bin/env python3
"""A Triton server with a pipeline of engines under load: throughput, latency, memory, and what must not get lost.

    python benchmarks/bench_serving.py engines/sdxl-sm_89 --clients 1,2,4,8 --requests 500 --steps 4 --size 1024
    python benchmarks/bench_serving.py engines/sdxl-tiny-sm_89 --device cpu --steps 1 --size 64

Needs a tritonserver with the Python backend (`pip install --no-deps --target FOLDER nvidia-pytriton`). It is started on
a repository that `svdq-trt triton` would write, which merges requests: the engines take a range of batches from 1 on.
Every picture is first asked for alone; then, for each number of clients, they are asked for in turn, and each answer is
compared with the first. Meanwhile clients are killed while they wait, and malformed requests are sent. Ends with 1 if a
request was lost, refused or answered with something else, or if memory grew by more than --growth from the second fifth
of the requests to the last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import script
from serving_bench import report
from serving_bench.clients import Load, Model
from serving_bench.memory import SAMPLES, Memory

from svdq_trt.serve.config import Serving, to_text
from svdq_trt.serve.repository import CONFIG, write_model
from tests.harness import slim
from tests.harness.triton_server import TritonServer, missing

NAME = "pictures"
PROMPTS = ("a fox", "an owl in snow", "a photo of bees", "the sea at night")


def main() -> int:
    args = _arguments()
    if args.device == "gpu":
        from bench_options import need_gpu

        need_gpu("Or measure with --device cpu.")
    if why := missing(args.server):
        sys.exit(f"--server: {why}")
    with tempfile.TemporaryDirectory(prefix="svdq-serving-") as folder:
        work = Path(folder)
        _write(args, work / "models")
        (work / "server").mkdir()
        python = slim.interpreter(work / "python", absent=())
        with TritonServer(work / "models", work / "server", [NAME], python, args.server) as server:
            started = server.log.stat().st_size
            try:
                rows = _measure(args, server)
            except psutil.NoSuchProcess:
                sys.exit(f"the server or one of its processes ended:\n{server.tail()}")
            log = server.log.read_bytes()[started:].decode(errors="replace")
    faults = [fault for row in rows for fault in report.faults(row, args.growth)]
    print(report.memory(rows), *faults, sep="\n")
    if args.out:
        args.out.write_text(json.dumps(_settings(args) | {"rows": rows, "faults": faults, "log": log}, indent=1) + "\n")
    return 1 if faults else 0


def _write(args: argparse.Namespace, repository: Path) -> None:
    serving = Serving(NAME, "pipeline", args.device, queue_delay_us=args.queue_delay)
    written = write_model(args.engine, repository, serving)
    if args.max_batch is not None:
        written.config.max_batch_size = args.max_batch
        (written.folder / CONFIG).write_text(to_text(written.config))


def _measure(args: argparse.Namespace, server: TritonServer) -> list[dict[str, Any]]:
    model, asked = Model(server.http, NAME, args.timeout), _asked(args)
    alone = Load(model, asked, len(asked)).run(1)
    if len(alone.seconds) < len(asked):
        sys.exit(f"a picture alone: {(alone.refused + alone.lost + alone.spoilt)[0]}")
    Load(model, asked, 4 * max(args.clients)).run(max(args.clients))  # memory that larger batches take for good
    memory, rows = Memory(server.pid, args.device == "gpu"), []
    print(report.HEAD)
    for clients in args.clients:
        before = model.statistics()
        outcome = Load(model, asked, args.requests).run(clients, args.disturb, memory.look)
        rows.append(report.row(clients, outcome, alone, report.since(before, model.statistics())))
        print(report.speed(rows[-1]), flush=True)
    return rows


def _asked(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pictures, of which neighbours differ in everything that may differ."""
    more = {"width": args.size, "height": args.size} | ({} if args.guidance is None else {"guidance": args.guidance})
    pairs = itertools.product(range(args.seeds), args.steps)
    return [{"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "steps": steps, **more} for seed, steps in pairs]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    machine: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if args.device == "gpu":
        import torch

        machine |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    options = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
    return {"machine": machine, "engine": args.engine.name, "options": options}


def _numbers(text: str) -> list[int]:
    """Positive whole numbers with commas between them."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("engine", type=Path, help="folder of engines with pipeline.json")
    p.add_argument("--clients", type=_numbers, default="1,2,4,8", help="at a time (default %(default)s)")
    p.add_argument("--requests", type=int, default=500, help="for each number of clients (default %(default)s)")
    p.add_argument("--steps", type=_numbers, default="4", help="of a picture; several, taken in turn: 1,4 (default 4)")
    p.add_argument("--size", type=int, default=1024, help="height and width (default %(default)s)")
    p.add_argument("--guidance", type=float, help="its scale (default: the pipeline's)")
    p.add_argument("--seeds", type=int, default=4, help="other pictures with the same steps (default %(default)s)")
    p.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    p.add_argument("--server", type=Path, metavar="FOLDER", help="of a tritonserver (default: the one `make` fetches)")
    p.add_argument("--max-batch", type=int, metavar="N", help="that Triton makes (default: the engine's)")
    p.add_argument(
        "--queue-delay", type=int, default=20_000, metavar="MICROSECONDS", help="to wait for others (default 20000)"
    )
    p.add_argument(
        "--disturb", type=int, default=20, metavar="N", help="kill a client, send nonsense: every N requests; 0: never"
    )
    p.add_argument("--timeout", type=float, default=600, help="seconds after which a request is lost")
    p.add_argument("--growth", type=float, default=50, metavar="MB", help="of memory that is no fault (default 50)")
    p.add_argument("--out", type=Path, metavar="JSON")
    args = p.parse_args()
    for name, least in (("requests", SAMPLES), ("seeds", 1)):
        if (got := getattr(args, name)) < least:
            p.error(f"--{name}: {got}, want at least {least}")
    return args


if __name__ == "__main__":
    script.run(main)
