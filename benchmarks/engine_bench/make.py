"""Job: random weights -> (quantized) module -> ONNX -> plan -> an engine folder that `Session` opens."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from engine_bench.fill import fill_graph
from engine_bench.model import blank_module, inputs_of, quantize, random_module
from engine_bench.rotation import diffusers_rotation
from svdq_trt.artifact import manifest, svdq_file
from svdq_trt.artifact.graph_entries import BackendEntry, OnnxEntry, PlanEntry, PluginEntry
from svdq_trt.artifact.manifest import Manifest, Tensor, TensorProfile
from svdq_trt.build.graph import export_model
from svdq_trt.contract.attention import ATTENTION_OPS
from svdq_trt.contract.formats import FORMATS
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import Backend, available
from svdq_trt.engine.build import build_plan
from svdq_trt.engine.gpu import local_arch
from svdq_trt.models import ModelSpec, TensorIO, get_model
from svdq_trt.nn import ops


class Here(Backend):
    """TensorRT-RTX that builds for the GPU present, whose architecture its list of targets may lack."""

    def set_target(self, config: Any, arch: int) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(self.module.ComputeCapability.CURRENT, 0)


class Clock:
    """A clock of each step's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 2), now
        print(f"{name} {self.seconds[name]} s", flush=True)


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Make an engine folder. job: as for `graph`, and sizes, target (or None), backend, torch_device, folder."""
    spec, folder, clock = get_model(job["model"]), Path(job["folder"]), Clock()
    folder.mkdir(parents=True, exist_ok=True)
    module = random_module(spec, seed=0, device=job["torch_device"])
    clock.lap("weights")
    result: dict[str, Any] = {}
    if job["format"] in FORMATS:
        nodes = _quantize(module, spec, job, folder, clock)
        result |= {"layers": len(nodes), "layer_sqnr_db": sum(n.sqnr_db for n in nodes) / len(nodes)}
    torch.nn.Module.to(module, "cpu")
    state = module.state_dict()
    result["weight_bytes"] = sum(t.numel() * t.element_size() for t in state.values())
    onnx = folder / "model.onnx"
    if job["graph"]:
        fill_graph(Path(job["graph"]), state, onnx)
    else:
        with diffusers_rotation(job["format"] == "diffusers"):
            export_model(
                module, spec, job["profile"], onnx, _silent, fuse_mlp=job["fuse_mlp"], attention=job["attention"]
            )
    del module, state
    gc.collect()
    clock.lap("export")
    result |= _build(job, spec, folder, clock)
    return result | {"seconds": clock.seconds}


def graph(job: dict[str, Any]) -> dict[str, Any]:
    """Trace without weights, for `make` elsewhere.

    job: model, format, skip, rank, profile, fuse_mlp, attention (head sizes of the plugin's), graph.
    """
    spec, clock = get_model(job["model"]), Clock()
    module = blank_module(spec, FORMATS.get(job["format"]), job["rank"], job["skip"])
    with diffusers_rotation(job["format"] == "diffusers"):
        info = export_model(
            module,
            spec,
            job["profile"],
            Path(job["graph"]),
            _silent,
            weights=False,
            fuse_mlp=job["fuse_mlp"],
            attention=job["attention"],
        )
    clock.lap("export")
    return {"nodes": info.node_count, "svdq_nodes": len(info.svdq_nodes), "seconds": clock.seconds}


@torch.no_grad()
def _quantize(
    module: torch.nn.Module, spec: ModelSpec, job: dict[str, Any], folder: Path, clock: Clock
) -> list[svdq_file.Node]:
    """Quantize in place, keep the artifact, and save the module's own output to torch.npy: the op's CPU body."""
    device = job["torch_device"]
    nodes = quantize(module, spec, FORMATS[job["format"]], job["rank"], job["skip"])
    clock.lap("quantize")
    if device == "cuda":
        ops.linear.register_kernel("cuda")(ops.as_kernel(ops.reference))
    out = spec.wrap(module)(*inputs_of(spec, job["sizes"], device))
    np.save(folder / "torch.npy", out.float().cpu().numpy())
    torch.nn.Module.to(module, "cpu")
    torch.cuda.empty_cache()
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    svdq_file.save(folder / "svdq.safetensors", tensors, {"model": spec.name, "skip": job["skip"]}, nodes)
    clock.lap("torch output")
    return nodes


def _silent(done: float, total: float, text: str = "") -> None:
    pass


def _build(job: dict[str, Any], spec: ModelSpec, folder: Path, clock: Clock) -> dict[str, Any]:
    (found, *_) = available(job["backend"])
    ahead_of_time = hasattr(found.module, "ComputeCapability")
    backend = Here(found.name, found.module) if ahead_of_time and not job["target"] else found
    arch = job["target"] or local_arch()
    assert arch is not None
    library = plugin_lib.load_into(backend.module)
    profiles = [TensorProfile(**_ranges(spec, io, job["profile"])) for io in spec.inputs]
    onnx, plan = folder / "model.onnx", folder / "model.plan"
    streaming = job.get("weight_streaming", False)
    info = build_plan(backend, onnx, arch, profiles, plan, _silent, streaming)
    clock.lap("plan")
    (folder / "layers.json").write_text(json.dumps([asdict(layer) for layer in info.layers]))
    (folder / "model.onnx.data").unlink()  # gigabytes that nothing reads anymore
    shutil.copyfile(library.path, folder / library.path.name)
    plugins, attentions = len(info.plugin_layers), _attentions(onnx)
    manifest.write(
        folder,
        Manifest(
            model=spec.name,
            arch=f"sm_{arch}",
            format=job["format"],
            rank=job["rank"],
            backend=BackendEntry(backend.name, backend.version),
            plugin=PluginEntry(library.path.name, library.version, library.sha256),
            plan=PlanEntry.of(info.file, streaming),
            onnx=OnnxEntry(onnx.name, onnx.stat().st_size),
            inputs=tuple(Tensor.of(p) for p in profiles),
            outputs=(),
            quantized=(),
            attention="plugin" if attentions else "tensorrt",
            kept_16bit=(),
            fp16_weight_bytes=0,
            quantized_weight_bytes=0,
            accuracy=None,
            device_memory_bytes=info.notes,
            timings_s=clock.seconds,
            peak_rss_bytes={},
            versions={},
            config={},
        ),
    )
    return {
        "plan_bytes": info.file.bytes,
        "plugin_layers": plugins,
        "plugin_attentions": attentions,
        "arch": arch,
        "notes": info.notes,
        "backend": f"{backend.name} {backend.version}",
    }


def _attentions(path: Path) -> int:
    """Attentions of a graph that are svdq nodes."""
    return sum(node.op_type in ATTENTION_OPS for node in ir.load(path).graph.all_nodes())


def _ranges(spec: ModelSpec, io: TensorIO, profile: dict[str, list[int]]) -> dict[str, Any]:
    shapes = [io.shape({symbol: values[i] for symbol, values in profile.items()}) for i in range(3)]
    dtype = str(io.torch_dtype(spec.torch_dtype)).removeprefix("torch.")
    return {"name": io.name, "dtype": dtype, "min": shapes[0], "opt": shapes[1], "max": shapes[2]}
