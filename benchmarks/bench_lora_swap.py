#!/usr/bin/env python3
"""Time a LoRA swap: SDXL-size slots against other ways to write them, and in a running engine.

    python benchmarks/bench_lora_swap.py                      # buffers only: needs a GPU and torch
    python benchmarks/bench_lora_swap.py --engine --work DIR  # also an engine of sdxl-tiny, kept in DIR/engine

Medians over --repeat calls. "host" is the time until the call returns, "gpu" the time between CUDA events around
it. "pieces" is what LoraSlots does; "per tensor" copies each reserved part by itself; "whole buffer" copies all inputs
from pinned memory, as a swap without reserved parts would have to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import script
import torch
from bench_options import need_gpu

Times = dict[str, float]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="sdxl", help="whose slots (default sdxl)")
    p.add_argument("--rank", type=int, default=32, help="R of the base")
    p.add_argument("--slots", type=int, nargs="+", default=[16, 32], help="S per linear")
    p.add_argument("--engine", action="store_true", help="also build and run sdxl-tiny")
    p.add_argument("--format", default="w4a8")
    p.add_argument("--target", type=int, metavar="SM", help="build for this arch (89); default: the GPU present")
    p.add_argument("--backend", default="auto")
    p.add_argument("--torch-device", default="cuda", choices=("cpu", "cuda"), help="where torch quantizes sdxl-tiny")
    p.add_argument("--make-only", action="store_true", help="build the engine and stop (no GPU needed)")
    p.add_argument("--repeat", type=int, default=50)
    p.add_argument("--work", type=Path, help="default: a new temporary folder")
    p.add_argument("--out", type=Path, metavar="JSON")
    args = p.parse_args()
    if not args.make_only:
        need_gpu("--make-only builds the engine without one.")
    elif not args.target:
        need_gpu("Or name the GPU to build for: --target SM.")
    work = args.work or Path(tempfile.mkdtemp(prefix="svdq-lora-"))
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": args.model, "rank": args.rank}
    if args.make_only:
        engine(args, work, run=False)
        return 0
    report["gpu"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        report["buffers"] = buffers(args, Path(folder))
    if args.engine:
        report["engine"] = engine(args, work, run=True)
    _print(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def times(call: Callable[[], Any], repeat: int) -> Times:
    """Medians of single calls, in ms."""
    for _ in range(3):
        call()
    host, gpu = [], []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        clock = time.perf_counter()
        call()
        host.append(1e3 * (time.perf_counter() - clock))
        end.record()
        end.synchronize()
        gpu.append(start.elapsed_time(end))
    return {"host_ms": statistics.median(host), "gpu_ms": statistics.median(gpu)}


def buffers(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Swap times of a model's slots, per number of reserved ranks."""
    from engine_bench.lora import write_loras, write_slots

    files = write_loras(folder, args.model, 16, 2)
    return [
        swaps(args, files, write_slots(folder, args.model, args.rank, reserved), reserved) for reserved in args.slots
    ]


def swaps(args: argparse.Namespace, files: list[Path], path: Path, reserved: int) -> dict[str, Any]:
    """Time the swaps at one size; every way of swapping is checked to leave the same bytes."""
    from svdq_trt.runtime.lora import LoraSlots

    clock = time.perf_counter()
    slots = LoraSlots(path, "cuda")
    torch.cuda.synchronize()
    result: dict[str, Any] = {
        "reserved": reserved,
        "inputs": len(slots.views),
        "open_s": time.perf_counter() - clock,
        "buffer_bytes": slots._flat.nbytes,
    }
    clock = time.perf_counter()
    first = slots.prepare(files[0])
    torch.cuda.synchronize()
    result["prepare_s"] = time.perf_counter() - clock
    second = slots.prepare(files[1])
    result["set_bytes"] = first.downs.nbytes + first.ups[0].nbytes
    sets = [first, second]

    def swap() -> None:
        sets.reverse()
        slots.fill(sets[0], 0.7)

    result["pieces"] = times(swap, args.repeat)
    result["strength only"] = times(lambda: slots.fill(sets[0], 0.7), args.repeat)
    slots.fill(first, 0.7)
    want = slots._flat.clone()
    parts = [slots.views[slot.down_name][slot.base :] for slot in slots.table.slots]
    parts += [slots.views[slot.up_name][:, slot.base :] for slot in slots.table.slots]
    sources = [part.clone() for part in parts]

    def per_tensor() -> None:
        for part, source in zip(parts, sources, strict=True):
            part.copy_(source)

    slots.clear()
    result["per tensor"] = times(per_tensor, max(args.repeat // 5, 3))
    assert torch.equal(slots._flat, want)
    host = want.cpu().pin_memory()
    slots.clear()
    result["whole buffer"] = times(lambda: slots._flat.copy_(host, non_blocking=True), max(args.repeat // 5, 3))
    assert torch.equal(slots._flat, want)
    staged = [t.cpu().pin_memory() for t in (first.downs, first.ups[0])]
    result["set from host"] = times(lambda: [t.to("cuda", non_blocking=True) for t in staged], max(args.repeat // 5, 3))
    return result


def engine(args: argparse.Namespace, work: Path, run: bool) -> dict[str, Any]:
    """Time a step of sdxl-tiny with and without slots, and swaps between steps."""
    from engine_bench.lora import make_engine, write_loras

    from svdq_trt.models import get_model

    options = {
        "format": args.format,
        "rank": args.rank,
        "target": args.target,
        "backend": args.backend,
        "torch_device": args.torch_device,
    }
    reserved = args.slots[0]
    make_engine(work / "engine", options, reserved)
    files = write_loras(work, "sdxl-tiny", 16, 2)
    if not run:
        return {}
    make_engine(work / "plain", options, 0)
    from svdq_trt.runtime import Session

    spec = get_model("sdxl-tiny")
    inputs = {io.name: t.cuda() for io, t in zip(spec.inputs, spec.example_inputs(seed=1), strict=True)}
    result: dict[str, Any] = {"reserved": reserved}
    with Session(work / "plain", allow_arch_mismatch=True, cuda_graph=True) as plain:
        result["step without slots"] = times(lambda: plain.run(inputs), args.repeat)
    with Session(work / "engine", allow_arch_mismatch=True, cuda_graph=True) as session:
        result["step, slots empty"] = times(lambda: session.run(inputs), args.repeat)
        sets = [session.prepare_lora(file) for file in files]
        base = session.run(inputs)["out_sample"].clone()

        def swap() -> None:
            sets.reverse()
            session.set_lora(sets[0], 0.7)

        result["swap"] = times(swap, args.repeat)
        result["step, slots full"] = times(lambda: session.run(inputs), args.repeat)

        def swap_and_step() -> None:
            swap()
            session.run(inputs)

        result["swap and step"] = times(swap_and_step, args.repeat)
        filled = session.run(inputs)["out_sample"].clone()
        session.set_lora(None)
        result["back bit for bit"] = bool(torch.equal(session.run(inputs)["out_sample"], base))
        result["lora does something"] = not torch.equal(filled, base)
    return result


def _print(report: dict[str, Any]) -> None:
    print(f"{report['gpu']}, {report['model']}, base rank {report['rank']}")
    for one in report["buffers"]:
        print(
            f"slots {one['reserved']}: {one['inputs']} inputs, {one['buffer_bytes'] / 1e6:.0f} MB, a set "
            f"{one['set_bytes'] / 1e6:.0f} MB; open {one['open_s']:.2f} s, prepare {one['prepare_s']:.2f} s"
        )
        _rows(one)
    if "engine" in report:
        print(
            f"sdxl-tiny engine, slots {report['engine']['reserved']}, CUDA graph; back bit for bit: "
            f"{report['engine']['back bit for bit']}; LoRA does something: {report['engine']['lora does something']}"
        )
        _rows(report["engine"])


def _rows(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"    {name:20} host {value['host_ms']:8.3f} ms   gpu {value['gpu_ms']:8.3f} ms")


if __name__ == "__main__":
    script.run(main)
