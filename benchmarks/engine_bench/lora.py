"""An sdxl-tiny engine with LoRA slots, LoRA files of any model, and slots of SDXL's size without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from engine_bench.make import Clock, _build
from engine_bench.model import quantize, random_module
from svdq_trt.artifact import manifest, svdq_file
from svdq_trt.artifact.manifest import SlotsEntry
from svdq_trt.base.files import sha256
from svdq_trt.build.graph import export_model
from svdq_trt.contract.formats import FORMATS
from svdq_trt.lora.apply import layer_shapes, node_rows
from svdq_trt.lora.factors import NodeRows
from svdq_trt.lora.slots import FILE, Slot, SlotTable, base_factors, install_slots, save_table
from svdq_trt.models import get_model
from svdq_trt.models.spec import SYMBOLS


def write_loras(folder: Path, model: str, rank: int, count: int) -> list[Path]:
    """Write random LoRA files for every linear, in diffusers' names: lora-<i>.safetensors."""
    paths = []
    for i in range(count):
        rng, tensors = torch.Generator().manual_seed(i), {}
        for layer, (n, *rest) in layer_shapes(get_model(model)).items():
            if len(rest) == 1:
                down, up = torch.randn(rank, *rest, generator=rng), torch.randn(n, rank, generator=rng)
                tensors[f"unet.{layer}.lora_A.weight"] = (down / rest[0] ** 0.5).half()
                tensors[f"unet.{layer}.lora_B.weight"] = (up * 0.1).half()
        paths.append(folder / f"lora-{i}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def write_slots(folder: Path, model: str, rank: int, reserved: int) -> Path:
    """Write lora_slots.safetensors of a model at full size, with random factors of the base."""
    spec = get_model(model)
    module = spec.build()
    shapes, groups = layer_shapes(spec), spec.groups(module)
    slots, base = [], {}
    for group in groups:
        starts = [sum(shapes[m][0] for m in group.members[:i]) for i in range(len(group.members))]
        n, k = sum(shapes[m][0] for m in group.members), shapes[group.members[0]][1]
        first = dict(zip(group.members, starts, strict=True))
        rows = NodeRows(group.node, first, n, k, group.columns, group.rows)
        slot = Slot(rows, rank, reserved * len(group.members))
        base[slot.down_name], base[slot.up_name] = torch.randn(rank, k).half(), torch.randn(n, rank).half()
        slots.append(slot)
    members = {m for group in groups for m in group.members}
    for layer, (n, *rest) in shapes.items():
        if layer not in members and len(rest) == 1:
            slots.append(Slot(NodeRows(layer, {layer: 0}, n, rest[0]), 0, reserved))
    save_table(folder / FILE, SlotTable(model, "float16", reserved, tuple(slots), dict(shapes)), base)
    return folder / FILE


@torch.no_grad()
def make_engine(folder: Path, options: dict[str, Any], reserved: int) -> None:
    """Quantize sdxl-tiny, export it with slots (0: without), build a plan that runs here.

    options: format, rank, target, backend, torch_device; see make.make.
    """
    spec, clock = get_model("sdxl-tiny"), Clock()
    folder.mkdir(parents=True, exist_ok=True)
    module = torch.nn.Module.to(random_module(spec, seed=0), options["torch_device"])
    nodes = quantize(module, spec, FORMATS[options["format"]], options["rank"])
    torch.nn.Module.to(module, "cpu")
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    svdq_file.save(folder / "svdq.safetensors", tensors, {"model": spec.name}, nodes)
    clock.lap("quantize")
    table = None
    if reserved:
        rows = list(node_rows(nodes, spec).values())
        table = install_slots(module, rows, spec.name, spec.torch_dtype, reserved, layer_shapes(spec))
    profile = {symbol: getattr(spec.profile, symbol) for symbol in SYMBOLS}
    inputs = table.input_names() if table else ()
    export_model(module, spec, profile, folder / "model.onnx", lambda *_: None, runtime_inputs=inputs)
    clock.lap("export")
    _build({"profile": profile, **options}, spec, folder, clock)
    if table is not None:
        save_table(folder / FILE, table, base_factors(module, table))
        slots = SlotsEntry(FILE, (folder / FILE).stat().st_size, sha256(folder / FILE), reserved)
        manifest.write(folder, replace(manifest.read(folder), lora_slots=slots))
