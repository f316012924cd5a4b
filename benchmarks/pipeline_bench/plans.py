"""Plans that a build left out, as no TensorRT here lists the GPU that is present."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from engine_bench.make import Here

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.build.stages.plan import Plan, with_plan
from svdq_trt.contract.archs import parse_arch
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import available


def make(folder: Path) -> None:
    """Make the plans of all engines of a pipeline, side by side, by TensorRT-RTX for the GPU present."""
    parts = [folder, *(folder / name for name in pipeline_file.parts_in(folder) or ())]
    with ProcessPoolExecutor(len(parts), get_context("spawn")) as pool:
        for part, count in zip(parts, pool.map(_make, parts), strict=True):
            print(f"{part}: {count / 1e9:.3f} GB", flush=True)


def _make(folder: Path) -> int:
    data = manifest.read(folder)
    (found, *_) = available("tensorrt-rtx")
    backend, library = Here(found.name, found.module), plugin_lib.find() if data.quantized else None
    stage = Plan.of(
        folder,
        "",
        parse_arch(data.arch),
        backend,
        tuple(tensor.profile for tensor in data.inputs),
        library,
        data.options.weight_streaming,
        tuple(piece.file for piece in data.onnx.pieces),
    )
    planned = stage.run_by(backend, lambda *_: None)
    manifest.write(folder, with_plan(data, planned, library))
    return planned.plan.bytes
