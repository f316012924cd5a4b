"""Stage: svdq.safetensors -> model.onnx (+ data), from the artifact alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, artifact, profile, out, lora_slots (0: none), fuse_mlp.

    With slots, lora_slots.safetensors is written beside `out`.
    """
    from svdq_trt.artifact import svdq_file
    from svdq_trt.build.stages.graph import export_model
    from svdq_trt.models import get_model
    from svdq_trt.nn.restore import restore_model

    spec = get_model(args["model"])
    progress(0, 1, "opening svdq.safetensors")
    loaded = svdq_file.load(Path(args["artifact"]))
    module, out = restore_model(loaded, spec), Path(args["out"])
    table = None
    if args["lora_slots"]:
        from svdq_trt.lora import slots
        from svdq_trt.lora.apply import layer_shapes, node_rows

        rows = list(node_rows(loaded.nodes, spec, loaded.meta.get("skip", ())).values())
        shapes = layer_shapes(spec)
        table = slots.install_slots(module, rows, spec.name, spec.torch_dtype, args["lora_slots"], shapes)
    inputs = table.input_names() if table else ()
    info = export_model(module, spec, args["profile"], out, progress, runtime_inputs=inputs, fuse_mlp=args["fuse_mlp"])
    if table is not None:
        slots.save_table(out.with_name(slots.FILE), table, slots.base_factors(module, table))
        info["lora_slots"] = {"rank": table.rank, "inputs": len(table.input_names())}
    return info
