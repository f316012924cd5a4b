"""Stage: a quantized checkpoint, ours or another tool's -> svdq.safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, path, out."""
    from svdq_trt.artifact import svdq_file
    from svdq_trt.base.errors import ArtifactError
    from svdq_trt.base.files import atomic_write
    from svdq_trt.interop import describe, import_checkpoint
    from svdq_trt.models import get_model
    from svdq_trt.nn.restore import restore_model

    spec, path, out = get_model(args["model"]), Path(args["path"]), Path(args["out"])
    progress(0, 2, f"reading {path.name}")
    kept: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if describe(path, spec).kind == "svdq-trt":
        with atomic_write(out) as tmp:
            shutil.copyfile(path / "svdq.safetensors" if path.is_dir() else path, tmp)
    else:
        report = import_checkpoint(path, spec, out)
        kept, notes = report.kept, report.notes
    progress(1, 2, "checking the artifact")
    loaded = svdq_file.load(out)
    if loaded.meta.get("model") != spec.name:
        raise ArtifactError(str(path), f"a model '{loaded.meta.get('model')}'", spec.name)
    restore_model(loaded, spec)
    module = spec.build(device="meta")
    recipe = spec.recipe(module, tuple(loaded.meta.get("skip", ())))
    quantized = {member for node in loaded.nodes for member in node.members}
    reasons = {k.name: k.reason for k in recipe.kept}
    reasons |= {
        m: kept.get(m, "16 bit in the given checkpoint") for g in recipe.groups for m in g.members if m not in quantized
    }
    known = [n.sqnr_db for n in loaded.nodes if n.sqnr_db == n.sqnr_db]
    return {
        "fp16_weight_bytes": sum(t.numel() * 2 for t in module.parameters()),
        "quantized_weight_bytes": out.stat().st_size,
        "kept_16bit": [{"name": name, "reason": reason} for name, reason in reasons.items()],
        "mean_sqnr_db": round(sum(known) / len(known), 2) if known else None,
        "nodes": len(loaded.nodes),
        "notes": list(notes),
        "rank": loaded.meta["rank"],
    }
