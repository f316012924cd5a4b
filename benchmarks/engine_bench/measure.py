"""Jobs: run one engine, or the model in torch, on the benchmark's inputs; time it with CUDA events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine_bench.model import inputs_of, random_module
from svdq_trt.artifact import svdq_file
from svdq_trt.bench.clock import CudaClock, percentiles
from svdq_trt.engine.backend import available
from svdq_trt.models import get_model
from svdq_trt.nn.restore import restore_model

CLOCK = CudaClock()


def time_ms(call: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Time single calls: median, p10 and p90."""
    return percentiles(CLOCK.times(call, repeat))


def engine(job: dict[str, Any]) -> dict[str, Any]:
    """Time an engine once stdin has a line. job: model, sizes, folder, graph, reopen, repeat, with_profile.

    Leaves the output in engine.npy and, if asked for, profile.json.
    """
    from svdq_trt.runtime import Session

    spec, folder = get_model(job["model"]), Path(job["folder"])
    available("auto")  # imports TensorRT
    sys.stdin.readline()
    feed = dict(zip((io.name for io in spec.inputs), inputs_of(spec, job["sizes"], "cuda"), strict=True))
    torch.cuda.synchronize()
    before, clock = CLOCK.used_bytes(), time.perf_counter()
    session = Session(folder, allow_arch_mismatch=True, cuda_graph=job["graph"])
    loaded = time.perf_counter() - clock
    (out,) = session.run(feed).values()
    torch.cuda.synchronize()
    first = time.perf_counter() - clock - loaded
    result: dict[str, Any] = {
        "load_s": round(loaded, 2),
        "first_run_s": round(first, 2),
        "memory_bytes": CLOCK.used_bytes() - before,
    }
    np.save(folder / "engine.npy", out.float().cpu().numpy())
    again = session.run(feed)[session.output_names[0]].float().cpu().numpy()
    result["repeats_bit_exact"] = bool(np.array_equal(again, np.load(folder / "engine.npy")))
    result["latency_ms"] = time_ms(lambda: session.run(feed), job["repeat"])
    if job["with_profile"]:
        (folder / "profile.json").write_text(json.dumps(_profile(session, feed)))
    session.close()
    if job["reopen"]:
        clock = time.perf_counter()
        with Session(folder, allow_arch_mismatch=True) as session:
            session.run(feed)
            torch.cuda.synchronize()
        result["reopen_s"] = round(time.perf_counter() - clock, 2)
    return result


def _profile(session: Any, feed: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Profile the kernels of one run, then the layers' times; neither in a CUDA graph."""
    session.cuda_graph = False
    kernels = CLOCK.kernels(lambda: session.run(feed))
    return {"kernels_us": kernels, "layers_ms": list(session.layer_times(feed).items())}


@torch.no_grad()
def torch_model(job: dict[str, Any]) -> dict[str, Any]:
    """Time the model in torch, as `engine`. job: model, sizes, folder, artifact, torch_device, repeat, with_profile.

    Without an artifact it runs the 16-bit model, whose output goes to torch.npy; with one, the quantized model, on the
    same kernels as in the plugin.
    """
    spec, folder = get_model(job["model"]), Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdin.readline()
    inputs = inputs_of(spec, job["sizes"], "cuda")
    torch.cuda.synchronize()
    before = CLOCK.used_bytes()
    if job["artifact"]:
        module = restore_model(svdq_file.load(Path(job["artifact"])), spec)
    else:
        module = random_module(spec, seed=0, device=job["torch_device"])
    flat = spec.wrap(torch.nn.Module.to(module, "cuda"))
    out = flat(*inputs).float().cpu().numpy()
    np.save(folder / ("kernels.npy" if job["artifact"] else "torch.npy"), out)
    result: dict[str, Any] = {"eager_ms": time_ms(lambda: flat(*inputs), max(job["repeat"] // 4, 5))}
    result["memory_bytes"] = CLOCK.used_bytes() - before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flat(*inputs)
    result["latency_ms"] = time_ms(graph.replay, job["repeat"])
    if job["with_profile"]:
        kernels = CLOCK.kernels(lambda: flat(*inputs))
        (folder / "profile-torch.json").write_text(json.dumps({"kernels_us": kernels}))
    return result | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
