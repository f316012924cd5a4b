#!/usr/bin/env python3
"""One model's engines, FP16 and quantized, in the same TensorRT in the same run: time, memory, size, accuracy.

    python benchmarks/bench_engine.py --model sdxl-tiny --formats fp16,int4,w4a8,nvfp4
    python benchmarks/bench_engine.py --model sdxl --formats fp16,w4a8 --batch 2 --height 1024 --width 1024
    python benchmarks/bench_engine.py --model sdxl --formats 'fp16,w4a8,w4a8<2M' ...    # the last with --skip '<2M'
    python benchmarks/bench_engine.py --model sdxl --formats w4a8,w4a8+tensorrt-attention ...   # whose attention

Needs a GPU and a TensorRT that runs on it. Weights are random with realistic outliers, inputs synthetic and equal
for all. Engines are built concurrently; timed runs run alone. Latency is one call from input copy
to output, between CUDA events, as a CUDA graph unless --no-graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import script
from engine_bench.variant import PLAIN, Variant

from svdq_trt.base.errors import UsageError
from svdq_trt.contract.sizes import SIZES

RIVALS = {"compile": False, "compile-fp8": True}  # does it have fp8 linears
RECORDED_ARCH = 90  # of the recorded runs: graphs may be traced where there is no GPU


def main() -> int:
    args = _arguments()
    if args.job:
        return _run_job(Path(args.job))
    from bench_options import need_gpu

    if args.stage not in ("make", "graphs"):
        need_gpu("--stage make builds the engines without one.")
    elif args.stage == "make" and not args.target:
        need_gpu("Or name the GPU to build for: --target SM.")
    from svdq_trt.engine.gpu import local_arch
    from svdq_trt.models import get_model

    spec = get_model(args.model)
    profile = {s: _range(getattr(args, s), getattr(spec.profile, s)) for s in SIZES}
    sizes = {symbol: values[1] for symbol, values in profile.items()}
    work = args.work or Path(tempfile.mkdtemp(prefix="svdq-bench-"))
    common = {"model": args.model, "sizes": sizes, "repeat": args.repeat}
    formats = args.formats.split(",")
    variants = {fmt: Variant.parse(fmt) for fmt in formats}
    rivals = args.rivals.split(",") if args.rivals else []
    if unknown := [name for name in rivals if name not in RIVALS]:
        raise UsageError("--rivals", f"'{unknown[0]}'", f"one of {', '.join(RIVALS)}")
    common |= {"torch_device": args.torch_device, "with_profile": args.profile}
    if args.stage in ("all", "make", "graphs"):
        making = common | {
            "rank": args.rank,
            "profile": profile,
            "target": args.target,
            "backend": args.backend,
            "weight_streaming": args.weight_streaming,
            "fuse_mlp": args.fuse_mlp,
        }
        kind = "graph" if args.stage == "graphs" else "make"
        arch = args.target or local_arch() or RECORDED_ARCH
        for fmt in formats:
            graph = str((args.graphs / args.model / f"{fmt}.onnx").resolve()) if args.graphs else ""
            variant = variants[fmt]
            job = making | {
                "format": variant.format,
                "skip": list(variant.skip),
                "attention": list(variant.head_sizes(arch)),
                "folder": str(work / fmt),
                "graph": graph,
            }
            process = _start(work, f"{kind}-{fmt}", kind, job)
            if kind == "graph":
                process.wait()  # one at a time: the tracer's objects take gigabytes
    report: dict[str, Any] = {"model": args.model, "sizes": sizes, "rank": args.rank, "engines": {}}
    if args.stage in ("make", "graphs"):
        return 0 if all([_wait(work, f"{args.stage.rstrip('s')}-{fmt}") for fmt in formats]) else 1
    running = common | {"graph": args.graph, "reopen": args.reopen}
    jobs = {}
    if not args.engines_only:
        jobs["torch"] = _start(work, "torch", "torch", common | {"folder": str(work / "torch"), "artifact": ""})
    for name in rivals:
        jobs[f"torch {name}"] = _start(work, f"torch {name}", "rival", common | {"fp8": RIVALS[name]})
    for fmt in formats:
        jobs[f"run-{fmt}"] = _start(work, f"run-{fmt}", "engine", running | {"folder": str(work / fmt)})
        if variants[fmt].format not in PLAIN and not args.engines_only:
            own = {"folder": str(work / fmt), "artifact": str(work / fmt / "svdq.safetensors")}
            jobs[f"torch-{fmt}"] = _start(work, f"torch-{fmt}", "torch", common | own)
    made = [fmt for fmt in formats if _wait(work, f"make-{fmt}")]  # from here on, one job at a time has the machine
    for name, process in jobs.items():
        if name.startswith("torch ") or name == "torch" or name.partition("-")[2] in made:
            process.communicate(b"go\n")
            _wait(work, name)
        else:
            process.kill()
    for fmt in formats:
        report["engines"][fmt] = _result(work, f"make-{fmt}") | _result(work, f"run-{fmt}")
    report["torch"] = {name: _result(work, name) for name in jobs if name.startswith("torch")}
    report["accuracy"] = _accuracy(work, formats)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    return 0 if all("latency_ms" in e for e in report["engines"].values()) else 1


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="sdxl-tiny")
    p.add_argument(
        "--formats",
        default="fp16,w4a8",
        help="fp16; diffusers (the same, FLUX's rotation as "
        "diffusers writes it); formats of svdq_trt/contract/formats.py, or with a size below which nodes are in "
        "16 bit, w4a8<2M, or nodes by pattern, w4a8~*.to_out.0; a quantized "
        "one with +plugin-attention or +tensorrt-attention, else as --attention auto says "
        "for --target, the GPU present, or sm_90",
    )
    p.add_argument("--rank", type=int, default=32)
    for symbol in SIZES:
        p.add_argument(f"--{symbol}", metavar="MIN:OPT:MAX", help="default: the model's profile; runs at OPT")
    p.add_argument("--target", type=int, metavar="SM", help="build for this arch (89); default: the GPU present")
    p.add_argument("--backend", default="auto")
    p.add_argument("--weight-streaming", action="store_true", help="engines for `svdq-trt bench --weight-budget`")
    p.add_argument(
        "--torch-device",
        default="cuda",
        choices=("cpu", "cuda"),
        help="where torch quantizes, and runs the quantized module to compare with",
    )
    p.add_argument(
        "--graphs",
        type=Path,
        metavar="DIR",
        help="<model>/<format>.onnx exported before, for these or "
        "wider sizes: weights are written here, tracing is left out",
    )
    p.add_argument(
        "--no-fuse-mlp",
        dest="fuse_mlp",
        action="store_false",
        help="two ops for a feed-forward; --graphs has what it was exported with",
    )
    p.add_argument("--repeat", type=int, default=50)
    p.add_argument("--no-graph", dest="graph", action="store_false")
    p.add_argument("--reopen", action="store_true", help="also time opening an engine again, with its runtime cache")
    p.add_argument("--work", type=Path, help="folder for engines and logs; default: a new temporary one")
    p.add_argument(
        "--stage",
        default="all",
        choices=("all", "graphs", "make", "measure"),
        help="a part of the work: graphs writes what --graphs reads and needs no GPU; make and measure share --work",
    )
    p.add_argument(
        "--rivals",
        default="",
        help="also diffusers' own module in torch: compile (torch.compile, 16 bit), compile-fp8 (its linears in e4m3, "
        "scaled by row and token)",
    )
    p.add_argument("--engines-only", action="store_true", help="leave out the runs in torch")
    p.add_argument(
        "--profile",
        action="store_true",
        help="leave layers.json (what TensorRT compiled) and profile.json (layer and kernel times) in WORK/<format>",
    )
    p.add_argument("--out", type=Path, metavar="JSON")
    p.add_argument("--job", help=argparse.SUPPRESS)
    return p.parse_args()


def _range(text: str | None, default: tuple[int, int, int]) -> tuple[int, int, int]:
    if text is None:
        return default
    values = [int(part) for part in text.split(":")]
    low, opt, high = values if len(values) == 3 else values * 3
    return low, opt, high


# ---- jobs ------------------------------------------------------------------------------------------------------


def _start(work: Path, name: str, kind: str, job: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a process for <name>.json -> <name>.result; its id is kept for a later call of this program."""
    work.mkdir(parents=True, exist_ok=True)
    (work / f"{name}.result").unlink(missing_ok=True)
    path = work / f"{name}.json"
    path.write_text(json.dumps({"kind": kind, **job}))
    with (work / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", __file__, "--job", str(path)], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    (work / f"{name}.pid").write_text(str(process.pid))
    return process


def _run_job(path: Path) -> int:
    job = json.loads(path.read_text())
    if job["kind"] == "make":
        from engine_bench.make import make as run
    elif job["kind"] == "graph":
        from engine_bench.make import graph as run
    elif job["kind"] == "engine":
        from engine_bench.measure import engine as run
    elif job["kind"] == "rival":
        from engine_bench.rivals import rival as run
    else:
        from engine_bench.measure import torch_model as run
    path.with_suffix(".result").write_text(json.dumps(run(job)))
    return 0


def _running(work: Path, name: str) -> bool:
    try:
        stat = Path(f"/proc/{(work / f'{name}.pid').read_text()}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _wait(work: Path, name: str) -> bool:
    """Wait until the job's process has ended; return whether it succeeded."""
    while _running(work, name):
        time.sleep(0.1)
    ok = (work / f"{name}.result").exists()
    print(f"{name}: {'ok' if ok else _tail(work / f'{name}.log')}", flush=True)
    return ok


def _result(work: Path, name: str) -> dict[str, Any]:
    path = work / f"{name}.result"
    return json.loads(path.read_text()) if path.exists() else {}


def _tail(log: Path) -> str:
    return "FAILED\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:])


# ---- report ----------------------------------------------------------------------------------------------------


def _accuracy(work: Path, formats: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of each engine's output against the FP16 engine, torch in FP16, and its own module in torch."""
    found = {}
    for fmt in formats:
        got = _load(work / fmt / "engine.npy")
        against = {
            "fp16 engine": work / "fp16" / "engine.npy",
            "torch fp16": work / "torch" / "torch.npy",
            "same module in torch": work / fmt / "torch.npy",
            "same module, our kernels": work / fmt / "kernels.npy",
        }
        if fmt == "fp16":
            del against["fp16 engine"]
        refs = {name: _load(path) for name, path in against.items()}
        if got is not None:
            found[fmt] = {name: _compare(ref, got) for name, ref in refs.items() if ref is not None}
    return found


def _load(path: Path) -> np.ndarray | None:
    return np.load(path).astype(np.float64).ravel() if path.exists() else None


def _compare(ref: np.ndarray, got: np.ndarray) -> dict[str, float]:
    noise = float(np.sum((ref - got) ** 2))
    sqnr = 10 * np.log10(np.sum(ref**2) / noise) if noise else float("inf")
    cosine = float(ref @ got / (np.linalg.norm(ref) * np.linalg.norm(got)))
    return {"sqnr_db": float(sqnr), "cosine": cosine, "max_abs": float(np.abs(ref - got).max())}


def _print(report: dict[str, Any]) -> None:
    t = report["torch"].get("torch", {})
    print(f"\n{report['model']} {report['sizes']} on {t.get('gpu')}, torch {t.get('torch')}")
    print(f"{'':18} {'median':>8} {'p10':>8} {'p90':>8} ms  GPU GB  plan GB  open s  first s  build s")
    for name, one in report["torch"].items():
        for key in ("eager_ms", "latency_ms"):
            if key in one:
                label = name + (" eager" if key == "eager_ms" else " graph")
                print(f"{label:18} {_ms(one[key])}    {one['memory_bytes'] / 1e9:7.2f}")
    for fmt, e in report["engines"].items():
        if "latency_ms" not in e:
            continue
        notes = f"plugins {e.get('plugin_layers')}, repeats bit-exact {e['repeats_bit_exact']}"
        if "reopen_s" in e:
            notes += f", reopen and run {e['reopen_s']} s"
        plan_gb, build_s = e.get("plan_bytes", 0) / 1e9, e.get("seconds", {}).get("plan", 0)
        print(
            f"{fmt + ' engine':18} {_ms(e['latency_ms'])}    {e['memory_bytes'] / 1e9:7.2f}  {plan_gb:7.3f}  "
            f"{e['load_s']:6.1f}  {e['first_run_s']:7.1f}  {build_s:7.1f}  {notes}"
        )
    for fmt, pairs in report["accuracy"].items():
        for name, a in pairs.items():
            print(
                f"{fmt:6} against {name:20} SQNR {a['sqnr_db']:6.2f} dB  cosine {a['cosine']:.6f}  "
                f"max {a['max_abs']:.4g}"
            )


def _ms(times: dict[str, float]) -> str:
    return " ".join(f"{times[name]:8.3f}" for name in ("median", "p10", "p90"))


if __name__ == "__main__":
    script.run(main)
