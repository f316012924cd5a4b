"""The contents of an engine's manifest, from the stages' results and the artifact."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt import __version__
from svdq_trt.artifact import svdq_file
from svdq_trt.base import errors
from svdq_trt.base.files import sha256
from svdq_trt.build.plan_of_work import CHECK_SEED, Engine, Work

if TYPE_CHECKING:
    from svdq_trt.build.run import Ledger
    from svdq_trt.engine.plugin_lib import PluginLibrary

_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "polygraphy", "safetensors", "numpy")


def manifest_of(
    work: Work,
    engine: Engine,
    ledger: Ledger,
    library: PluginLibrary,
    plugin: Path,
    incomplete: errors.IncompleteError | None,
) -> dict[str, Any]:
    """All of manifest.json but its version."""
    results = ledger.results
    plan: dict[str, Any] = results.get("plan", {})
    data = engine.folder / "model.onnx.data"
    onnx_bytes = (engine.folder / "model.onnx").stat().st_size + (data.stat().st_size if data.exists() else 0)
    return {
        "model": work.spec.name,
        "arch": f"sm_{engine.arch}",
        "format": engine.format.name,
        "rank": results["quantize"].get("rank", work.config.rank),
        "backend": plan.get("backend", {}),
        "plugin": {
            "file": plugin.name,
            "version": library.version,
            "sha256": library.sha256,
            "embedded": incomplete is None,
        },
        "plan": {} if incomplete else {"file": "model.plan", "bytes": plan["bytes"], "sha256": plan["sha256"]},
        "incomplete": "" if incomplete is None else str(incomplete),
        "onnx": {"file": "model.onnx", "bytes": onnx_bytes},
        "inputs": [_ranged(t) for t in work.profiles()],
        "outputs": [_ranged(t) for t in work.outputs()],
        "allocation": results.get("allocate", {}),
        "quantized": _quantized(engine.folder / "svdq.safetensors"),
        "loras": results.get("lora", {}).get("loras", []),
        "lora_slots": _slots(engine.folder, results["export"].get("lora_slots")),
        "plugin_layers": plan.get("plugin_layers", []),
        "kept_16bit": results["quantize"]["kept_16bit"],
        "fp16_weight_bytes": results["quantize"]["fp16_weight_bytes"],
        "quantized_weight_bytes": results.get("lora", results["quantize"])["quantized_weight_bytes"],
        "accuracy": _accuracy(work, results),
        "device_memory_bytes": {kind: plan.get("memory", {}).get(kind) for kind in ("weights", "activations")},
        "timings_s": ledger.seconds,
        "peak_rss_bytes": ledger.peak_rss,
        "versions": _versions(),
        "config": work.config.to_json(),
    }


def _slots(folder: Path, info: dict[str, Any] | None) -> dict[str, Any]:
    """The file that fills the graph's LoRA inputs; {} for an engine without slots."""
    if info is None:
        return {}
    path = folder / "lora_slots.safetensors"
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), **info}


def _ranged(tensor: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tensor["name"],
        "dtype": tensor["dtype"],
        "shape": {bound: list(tensor[bound]) for bound in ("min", "opt", "max")},
    }


def _quantized(path: Path) -> list[dict[str, Any]]:
    """One entry per original linear; linears of one node share its figures."""
    return [
        {
            "name": member,
            "node": node.name,
            "format": node.format,
            "rank": node.rank,
            "K": node.k,
            "N": rows,
            "activation": node.activation,
            "act_unsigned": node.act_unsigned,
            "act_shift": node.act_shift,
            "alpha": node.alpha,
            "beta": node.beta,
            "sqnr_db": None if math.isnan(node.sqnr_db) else round(node.sqnr_db, 2),
        }
        for node in svdq_file.read_nodes(path)
        for member, rows in zip(node.members, node.member_rows, strict=True)
    ]


def _accuracy(work: Work, results: dict[str, Any]) -> dict[str, Any]:
    if "compare" not in results:
        return {}
    return {
        "against": "the FP16 ONNX in ONNX Runtime",
        "sizes": work.check_sizes(),
        "seed": CHECK_SEED,
        "mean_layer_sqnr_db": results["quantize"]["mean_sqnr_db"],
        "outputs": results["compare"]["outputs"],
        "plot": "accuracy.png",
    }


def _versions() -> dict[str, str]:
    found = {"svdq-trt": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
