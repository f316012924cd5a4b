"""Stage: model.onnx + plugin -> model.plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: onnx, arch, backend, profiles, plan, plugin."""
    from svdq_trt.artifact.manifest import TensorProfile
    from svdq_trt.engine import plugin_lib
    from svdq_trt.engine.backend import select
    from svdq_trt.engine.build import build_plan

    backend = select(args["backend"], args["arch"])
    library = Path(args["plugin"])
    progress(0, 1, "loading the plugin")
    plugin_lib.load_into(backend.module, library)
    profiles = [TensorProfile(**p) for p in args["profiles"]]
    info = build_plan(backend, Path(args["onnx"]), args["arch"], profiles, Path(args["plan"]), progress, embed=library)
    return {
        "bytes": info.bytes,
        "sha256": info.sha256,
        "plugin_layers": info.plugin_layers,
        "backend": {"name": backend.name, "version": backend.version},
        "memory": info.notes,
    }
