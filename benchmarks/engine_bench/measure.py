"""Jobs: run one engine, or the model in torch, on the benchmark's inputs; time it with CUDA events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine_bench.model import inputs_of, random_module
from svdq_trt.engine.backend import available
from svdq_trt.models import get_model

WARMUP = 5


def time_ms(call: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Median, p10 and p90 of single calls, each between two events on the current stream."""
    for _ in range(WARMUP):
        call()
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return {name: float(np.percentile(times, q)) for name, q in (("p10", 10), ("median", 50), ("p90", 90))}


def used_bytes() -> int:
    """Device memory in use on the whole GPU, by anyone."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def engine(job: dict[str, Any]) -> dict[str, Any]:
    """job: model, sizes, folder, host_code, graph, reopen, repeat. Waits for a line on stdin; output to engine.npy."""
    from svdq_trt.runtime import Session

    spec, folder = get_model(job["model"]), Path(job["folder"])
    available("auto")  # imports TensorRT
    sys.stdin.readline()
    feed = dict(zip((io.name for io in spec.inputs), inputs_of(spec, job["sizes"], "cuda"), strict=True))
    torch.cuda.synchronize()
    before, clock = used_bytes(), time.perf_counter()
    session = Session(folder, allow_host_code=job["host_code"], allow_arch_mismatch=True, cuda_graph=job["graph"])
    loaded = time.perf_counter() - clock
    (out,) = session.run(feed).values()
    torch.cuda.synchronize()
    first = time.perf_counter() - clock - loaded
    result = {"load_s": round(loaded, 2), "first_run_s": round(first, 2), "memory_bytes": used_bytes() - before}
    np.save(folder / "engine.npy", out.float().cpu().numpy())
    again = session.run(feed)[session.output_names[0]].float().cpu().numpy()
    result["repeats_bit_exact"] = bool(np.array_equal(again, np.load(folder / "engine.npy")))
    result["latency_ms"] = time_ms(lambda: session.run(feed), job["repeat"])
    session.close()
    if job["reopen"]:
        clock = time.perf_counter()
        with Session(folder, allow_host_code=job["host_code"], allow_arch_mismatch=True) as session:
            session.run(feed)
            torch.cuda.synchronize()
        result["reopen_s"] = round(time.perf_counter() - clock, 2)
    return result


@torch.no_grad()
def torch_fp16(job: dict[str, Any]) -> dict[str, Any]:
    """job: model, sizes, folder, repeat. Prepares, waits for a line on stdin, then runs; output to torch.npy."""
    spec, folder = get_model(job["model"]), Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    module = random_module(spec, seed=0)
    sys.stdin.readline()
    inputs = inputs_of(spec, job["sizes"], "cuda")
    torch.cuda.synchronize()
    before = used_bytes()
    flat = spec.wrap(torch.nn.Module.to(module, "cuda"))
    np.save(folder / "torch.npy", flat(*inputs).float().cpu().numpy())
    result: dict[str, Any] = {"eager_ms": time_ms(lambda: flat(*inputs), max(job["repeat"] // 4, 5))}
    result["memory_bytes"] = used_bytes() - before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flat(*inputs)
    result["latency_ms"] = time_ms(graph.replay, job["repeat"])
    return result | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
