"""Every tiny model: a LoRA of all its layers, built in and in slots, is one and the same model."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.artifact import svdq_file
from svdq_trt.lora.apply import LoraRequest, apply_loras, layer_shapes, node_rows
from svdq_trt.lora.slots import FILE, base_factors, install_slots, save_table
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model
from svdq_trt.runtime.lora import LoraSlots
from tests.cpu.lora.lora_model import quantize
from tests.harness.lora_files import make_factors, write_peft

NAMES = [
    "pixart-tiny",
    "sana-tiny",
    "flux1-tiny",
    "flux2-tiny",
    "z-image-tiny",
    "qwen-image-tiny",
    "krea2-tiny",
    "wan-tiny",
    "chroma-tiny",
    "longcat-tiny",
]


def db(want, got):
    return float(10 * torch.log10(want.double().square().sum() / (want.double() - got.double()).square().sum()))


@pytest.mark.parametrize("name", NAMES)
def test_built_in_and_in_slots(name, tmp_path):
    spec, base = get_model(name), quantize(name, tmp_path)
    shapes = layer_shapes(spec)
    loaded = svdq_file.load(base)
    members = {m for node in loaded.nodes for m in node.members}
    layers = [layer for layer, shape in shapes.items() if len(shape) == 2 or layer in members]
    factors = make_factors(spec, layers, rank=4, seed=6, size=0.05, alpha=4)
    lora = write_peft(tmp_path / "a.safetensors", factors, prefix="transformer.")

    apply_loras(base, [LoraRequest(lora, 0.5)], spec, False, tmp_path / "built", lambda *a: None)
    built = svdq_file.load(tmp_path / "built")
    rows = node_rows(loaded.nodes, spec)
    for old, new in zip(loaded.nodes, built.nodes, strict=True):
        got = layer_of(new, built.tensors).dequantize() - layer_of(old, loaded.tensors).dequantize()
        want = torch.cat(
            [0.5 * factors[m].up.float().flatten(1) @ factors[m].down.float().flatten(1) for m in old.members]
        )
        got = got[:, : want.shape[1]]  # without the zeros that make K fit
        if rows[old.name].columns:
            want = want[:, slice(*rows[old.name].columns)]
        if rows[old.name].rows:
            want = torch.cat([want[start:stop] for start, stop in rows[old.name].rows])
        assert db(want, got) > 38, old.name  # bf16 factors: 2^-9

    module = restore_model(loaded, spec)
    table = install_slots(module, list(rows.values()), name, spec.torch_dtype, 16, shapes)
    save_table(tmp_path / FILE, table, base_factors(module, table))
    slots = LoraSlots(tmp_path / FILE)
    slots.fill(slots.prepare(lora), 0.5)
    for slot in table.slots:
        node = module.get_submodule(slot.rows.name)
        node.lora_down, node.lora_up = slots.views[slot.down_name], slots.views[slot.up_name]
    inputs = [t.float() for t in spec.example_inputs(batch=1, height=64, width=64, seed=5)]
    with torch.inference_mode():
        want, got, without = (
            spec.wrap(m.float())(*inputs) for m in (restore_model(built, spec), module, restore_model(loaded, spec))
        )
    # Factors in 16 bit flip 4-bit codes behind them: how many, depends on the model.
    assert db(want, without) < 25 and db(want, got) > db(want, without) + 7, (db(want, without), db(want, got))
