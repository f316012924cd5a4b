#!/usr/bin/env python3
"""Ways to write FLUX's rotary embedding, each compiled by TensorRT-RTX and timed in front of attention.

    python benchmarks/micro/rotary_forms.py --out forms.json         # on a machine with a GPU and a TensorRT for it
    python benchmarks/micro/rotary_forms.py --forms none,strided,halves --parts attention
    python benchmarks/micro/rotary_forms.py --target 89              # without a GPU: only traces and builds

A graph runs from the fused projection's output through the norms of q and k to attention's output, in bf16 at
FLUX.1's size, as the exporter writes it. Part "attention" is two blocks, since TensorRT makes one kernel of the first
block's q and k, with the tables, and one for each in all others; a form's cost is its time beyond that of "none". Part
"rotation" ends with one block's q and k, which are compared with torch in f32. Plans are built concurrently, then
timed one at a time: median of CUDA graph replays, and the kernels of one run.
The forms are in rotary_graphs.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_options import need_gpu
from engine_bench.make import Here
from engine_bench.measure import CLOCK, time_ms
from rotary_graphs import FORMS, Blocks, Sizes, feed, inputs_of, reference
from script import run

from svdq_export import export_onnx
from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.engine.backend import available
from svdq_trt.engine.build import build_plan
from svdq_trt.engine.gpu import local_arch
from svdq_trt.runtime.cache import RuntimeCache
from svdq_trt.runtime.opening import logger_of

PARTS = ("attention", "rotation")


def sqnr_db(want: torch.Tensor, got: torch.Tensor) -> float:
    """Signal over error, in dB."""
    noise = (want.double() - got.double()).square().sum()
    return float(10 * torch.log10(want.double().square().sum() / noise))


# ---- builds --------------------------------------------------------------------------------------------------------


def output_names(part: str) -> list[str]:
    return ["q", "k"] if part == "rotation" else ["y"]


def trace(name: str, sizes: Sizes, part: str, path: Path) -> None:
    """Write the form's graph."""
    form = FORMS[name]
    with torch.no_grad():
        export_onnx(Blocks(form, sizes, part), feed(form, sizes), {}, output_names(part), path)


def build(name: str, part: str, sizes: Sizes, target: int | None, graphs: Path, plan: Path) -> dict[str, Any]:
    """Build `plan` from the form's graph in `graphs`, traced if missing; returns the names of the compiled layers."""
    graph, started = graphs / f"{name}-{part}.onnx", time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        if not graph.is_file():
            trace(name, sizes, part, graph)
        traced = time.perf_counter()
        (found, *_) = available("tensorrt-rtx")
        backend = found if target else Here(found.name, found.module)
        arch = target or local_arch()
        assert arch is not None, "no GPU here: --target"
        given = ((key, str(t.dtype), tuple(t.shape)) for key, t in inputs_of(sizes).items())
        profiles = [TensorProfile(key, dtype, shape, shape, shape) for key, dtype, shape in given]
        info = build_plan(backend, graph, arch, profiles, plan, lambda *_: None)
    layers = [layer.name for layer in info.layers if layer.type not in ("signal", "wait")]
    return {"layers": layers, "trace_s": round(traced - started, 2), "build_s": round(time.perf_counter() - traced, 2)}


def try_build(*args: Any) -> dict[str, Any]:
    """Call `build`; returns its result or {"error": a line}: not all exceptions of TensorRT and the exporter pickle."""
    try:
        return build(*args)
    except Exception as error:
        return {"error": _line(error)}


# ---- runs ----------------------------------------------------------------------------------------------------------


class Engine:
    """A plan on the GPU with its own memory; a call enqueues one run on torch's current stream."""

    def __init__(self, trt: Any, plan: Path, inputs: dict[str, torch.Tensor], cache: Path) -> None:
        self._engine = trt.Runtime(logger_of(trt)).deserialize_cuda_engine(plan.read_bytes())
        config = self._engine.create_runtime_config()
        kept = RuntimeCache(config, cache)  # attention's kernel is the same for all forms
        self._context = self._engine.create_execution_context(config)
        kept.save()
        self.tensors = {name: t.cuda() for name, t in inputs.items()}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.outputs = [name for name in names if name not in inputs]
        for name in self.outputs:
            self.tensors[name] = torch.empty(tuple(self._engine.get_tensor_shape(name)), dtype=torch.bfloat16).cuda()
        for name, t in self.tensors.items():
            self._context.set_tensor_address(name, t.data_ptr())

    def __call__(self) -> None:
        assert self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream)


@torch.no_grad()
def measure(name: str, part: str, sizes: Sizes, plan: Path, repeat: int) -> dict[str, Any]:
    """Measure times in us, kernels, and the error of the output."""
    (backend, *_) = available("tensorrt-rtx")
    form = FORMS[name]
    started = time.perf_counter()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        engine = Engine(backend.module, plan, feed(form, sizes), plan.parent / "runtime-cache.bin")
        for _ in range(2):  # the first run compiles
            engine()
        stream.synchronize()
        kernels = CLOCK.kernels(engine)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            engine()
        times = time_ms(graph.replay, repeat)
        want = reference(form, sizes, part, "cuda")
        got = [engine.tensors[output] for output in output_names(part)]
        pairs = list(zip(want, got, strict=True))
        stream.synchronize()
    return {
        "us": {key: round(ms * 1e3, 1) for key, ms in times.items()},
        "sqnr_db": round(min(sqnr_db(w, g) for w, g in pairs), 2),
        "max_abs": max(float((w.float() - g.float()).abs().max()) for w, g in pairs),
        "equal_when_rounded": min(float((w.bfloat16() == g).float().mean()) for w, g in pairs),
        "kernels_us": [(kernel, us) for kernel, us, _ in kernels],
        "seconds": round(time.perf_counter() - started, 2),
    }


# ---- report --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Build all, run one after the other; a form that fails says why and the others continue."""
    args = _arguments()
    if not args.target:
        need_gpu("--target SM builds the forms without running them.")
    started = time.perf_counter()
    sizes = Sizes()
    rows: list[dict[str, Any]] = []
    jobs = [(name, part) for part in args.parts for name in args.forms]
    with tempfile.TemporaryDirectory() as tmp:
        plans = [Path(tmp) / f"{name}-{part}.plan" for name, part in jobs]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(args.jobs, len(jobs)), mp_context=spawn) as pool:
            futures = [
                pool.submit(try_build, *job, sizes, args.target, args.graphs or Path(tmp), plan)
                for job, plan in zip(jobs, plans, strict=True)
            ]
            rows += [{"form": name, "part": part} for name, part in jobs]
            for row, future in zip(rows, futures, strict=True):
                row |= future.result()
        print(f"built in {time.perf_counter() - started:.1f} s", flush=True)
        for row, plan in zip(rows, plans, strict=True):
            if not args.target and "error" not in row:
                row |= _try_measure(row, sizes, plan, args.repeat, started + args.seconds)
            _print(row, rows)
    if args.out:
        gpu = "" if args.target else torch.cuda.get_device_name()
        args.out.write_text(json.dumps({"gpu": gpu, "sizes": asdict(sizes), "rows": rows}, indent=1) + "\n")
    return 1 if any("error" in row for row in rows) else 0


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--forms", type=_names(tuple(FORMS)), default=list(FORMS), help=", ".join(FORMS))
    p.add_argument("--parts", type=_names(PARTS), default=list(PARTS))
    p.add_argument("--repeat", type=int, default=60)
    p.add_argument("--seconds", type=float, default=55, help="begin no further run after this time")
    p.add_argument("--jobs", type=int, default=12, help="builds side by side")
    p.add_argument("--graphs", type=Path, metavar="DIR", help="where graphs are kept: those there are not traced again")
    p.add_argument("--target", type=int, metavar="SM", help="build for this arch and run nothing")
    p.add_argument("--out", type=Path, metavar="JSON")
    return p.parse_args()


def _names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}', want of {', '.join(known)}")
        return chosen

    return names


def _try_measure(row: dict[str, Any], sizes: Sizes, plan: Path, repeat: int, end: float) -> dict[str, Any]:
    if time.perf_counter() > end:
        return {"error": "left out, as --seconds have passed"}
    try:
        return measure(row["form"], row["part"], sizes, plan, repeat)
    except Exception as error:
        return {"error": _line(error)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _print(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print one form's line, and its kernels or layers below."""
    head = f"{row['part']:10} {row['form']:20}"
    if "error" in row:
        print(head, row["error"], flush=True)
        return
    if "us" not in row:
        print(f"{head} traced in {row['trace_s']} s, built in {row['build_s']} s", *row["layers"], sep="\n    ")
        return
    us, none = row["us"], ("none", row["part"])
    floor = next((r["us"]["median"] for r in rows if (r["form"], r["part"]) == none and "us" in r), 0)
    print(
        f"{head} {us['median']:8.1f} us ({us['p10']:.1f} to {us['p90']:.1f}), {us['median'] - floor:.1f} more; "
        f"SQNR {row['sqnr_db']:.1f} dB, max {row['max_abs']:.3g}, equal {row['equal_when_rounded']:.5f}; "
        f"{row['seconds']} s",
        flush=True,
    )
    for kernel, time_us in row["kernels_us"] if row["part"] == "attention" else ():
        print(f"    {time_us:8.1f} us  {kernel[:110]}", flush=True)


if __name__ == "__main__":
    run(main)
