"""Build the plan of an engine folder whose build stopped before it: on the target, from model.onnx alone."""

from __future__ import annotations

from pathlib import Path

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import remove_leftovers
from svdq_trt.build.folder import copy_plugin, only_writer
from svdq_trt.build.process import StageRunner
from svdq_trt.build.ui import Screen
from svdq_trt.contract.archs import parse_arch
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import select


def finish(folder: Path, backend_choice: str) -> Path:
    """Build <folder>/model.plan and complete the manifest. Returns the plan's path.

    Raises:
        ArtifactError: no manifest or no model.onnx, or another process writes there. IncompleteError: still no backend
            for this arch here.
    """
    if not folder.is_dir():
        raise ArtifactError(str(folder), "no such folder", "an engine folder")
    with only_writer(folder):
        return _finish(folder, backend_choice)


def _finish(folder: Path, backend_choice: str) -> Path:
    data = manifest.read(folder)
    onnx = folder / "model.onnx"
    if not onnx.is_file():
        raise ArtifactError(str(onnx), "missing", "the exported model", "Run svdq-trt build again.")
    arch = parse_arch(data["arch"])
    backend, library = select(backend_choice, arch), plugin_lib.find()
    profiles = [{"name": t["name"], "dtype": t["dtype"], **t["shape"]} for t in data["inputs"]]
    args = {
        "onnx": str(onnx),
        "arch": arch,
        "backend": backend.name,
        "profiles": profiles,
        "plan": str(folder / "model.plan"),
        "plugin": str(library.path),
    }
    remove_leftovers(folder, ["model.plan"])
    with Screen() as screen, screen.stage(f"plan      sm_{arch} {backend.name}") as progress:
        done = StageRunner().run("plan", args, folder / "finish.log", progress)
    plan = done.value
    data["plan"] = {"file": "model.plan", "bytes": plan["bytes"], "sha256": plan["sha256"]}
    data["backend"], data["plugin_layers"], data["incomplete"] = plan["backend"], plan["plugin_layers"], ""
    plugin = copy_plugin(library.path, folder)
    data["plugin"] = {"file": plugin.name, "version": library.version, "sha256": library.sha256, "embedded": True}
    data["device_memory_bytes"] = {kind: plan["memory"].get(kind) for kind in ("weights", "activations")}
    data["timings_s"]["plan"], data["peak_rss_bytes"]["plan"] = round(done.seconds, 2), done.peak_rss_bytes
    manifest.write(folder, data)
    return folder / "model.plan"
