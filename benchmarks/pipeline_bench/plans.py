"""Plans that a build left out, as no TensorRT here lists the GPU that is present."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from engine_bench.make import Here

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.manifest import BackendEntry, PlanEntry
from svdq_trt.build.stages.plan import FILE, Planned, with_plan
from svdq_trt.contract.archs import parse_arch
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import available
from svdq_trt.engine.build import build_plan


def make(folder: Path) -> None:
    """Make the plans of all engines of a pipeline, side by side, by TensorRT-RTX for the GPU present."""
    parts = [folder, *(folder / name for name in pipeline_file.parts_in(folder) or ())]
    with ProcessPoolExecutor(len(parts), get_context("spawn")) as pool:
        for part, count in zip(parts, pool.map(_make, parts), strict=True):
            print(f"{part}: {count / 1e9:.3f} GB", flush=True)


def _make(folder: Path) -> int:
    data = manifest.read(folder)
    (found, *_) = available("tensorrt-rtx")
    backend, library = Here(found.name, found.module), None
    if data.quantized:
        library = plugin_lib.load_into(backend.module)
    streaming = data.options.weight_streaming
    profiles = [tensor.profile for tensor in data.inputs]
    onnx, plan = folder / data.onnx.file, folder / FILE
    info = build_plan(
        backend, onnx, parse_arch(data.arch), profiles, plan, lambda *_: None, library and library.path, streaming
    )
    planned = Planned(
        PlanEntry(FILE, info.bytes, info.sha256, streaming),
        BackendEntry(backend.name, backend.version),
        tuple(info.plugin_layers),
        info.notes,
    )
    manifest.write(folder, with_plan(data, planned, library))
    return info.bytes
