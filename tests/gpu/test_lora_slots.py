"""LoRA slots on a GPU: the same buffer as on the CPU; swaps in an engine, with and without a CUDA graph.

SVDQ_TEST_ENGINE names a folder built with --lora-slots (benchmarks/bench_lora_swap.py --engine --slots 32 --work DIR
leaves one in DIR/engine, with LoRA files in DIR); SVDQ_TEST_HOST_CODE=1 runs the folder's plugin library.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from svdq_trt.models import get_model
from svdq_trt.runtime.lora import LoraSlots

OPTIONS = {"allow_arch_mismatch": True, "allow_host_code": os.environ.get("SVDQ_TEST_HOST_CODE") == "1"}


@pytest.fixture(scope="module")
def folder():
    path = Path(os.environ.get("SVDQ_TEST_ENGINE", ""))
    if not (path / "lora_slots.safetensors").is_file():
        pytest.skip("SVDQ_TEST_ENGINE names no engine folder with LoRA slots")
    return path


@pytest.fixture(scope="module")
def loras(folder):
    return sorted(folder.parent.glob("lora-*.safetensors"))


def feed(seed=3):
    spec = get_model("sdxl-tiny")
    tensors = spec.example_inputs(batch=2, height=128, width=128, seed=seed)
    return {io.name: t.cuda() for io, t in zip(spec.inputs, tensors, strict=True)}


def out(session, seed=3):
    return session.run(feed(seed))["out_sample"].clone()


def test_buffer_is_the_cpus_bit_for_bit(folder, loras):
    gpu, cpu = (LoraSlots(folder / "lora_slots.safetensors", device) for device in ("cuda", "cpu"))
    for request, strength in ((loras[0], 0.7), ([(loras[0], 0.5), (loras[1], -1.25)], 1.0), (None, 1.0)):
        for slots in (gpu, cpu):
            slots.fill(slots.prepare(request), strength)
        for name, view in cpu.views.items():
            assert torch.equal(gpu.views[name].cpu(), view), name


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_swaps_between_steps(folder, loras, cuda_graph):
    from svdq_trt.runtime import Session

    with Session(folder, cuda_graph=cuda_graph, **OPTIONS) as session:
        for _ in range(3):  # run, capture, replay
            base = out(session)
        first, second = (session.prepare_lora(path) for path in loras[:2])
        seen = {}
        for lora, strength in ((first, 0.7), (second, 0.7), (first, -0.5), (first, 0.7), (second, 0.7), (first, -0.5)):
            session.set_lora(lora, strength)
            got = out(session)
            key = id(lora), strength
            assert torch.equal(seen.setdefault(key, got), got)
            assert not torch.equal(got, base)
        session.set_lora(first, 0.0)
        assert torch.equal(out(session), base)
        session.set_lora(None)
        assert torch.equal(out(session), base)
        if cuda_graph:
            assert session.parts[0]._replay is not None  # one capture served all of it


def test_engine_is_the_torch_module_with_the_same_lora(folder, loras):
    from svdq_trt.artifact import svdq_file
    from svdq_trt.nn.restore import restore_model
    from svdq_trt.runtime import Session

    spec, inputs = get_model("sdxl-tiny"), feed()
    with Session(folder, **OPTIONS) as session:
        base = out(session).cpu()
        session.set_lora(loras[0], 0.7)
        got = out(session).cpu()
        views = {name: view.cpu() for name, view in session.lora.views.items()}
        table = session.lora.table
    module = restore_model(svdq_file.load(folder / "svdq.safetensors"), spec)
    for slot in table.slots:
        node = module.get_submodule(slot.rows.name)
        if slot.base:
            node.lora_down, node.lora_up = views[slot.down_name], views[slot.up_name]
        else:
            delta = views[slot.up_name].float() @ views[slot.down_name].float()
            node.weight = torch.nn.Parameter((node.weight.float() + delta).half())
    with torch.inference_mode():
        want = spec.wrap(module)(*(t.cpu() for t in inputs.values()))

    def db(y):
        return float(10 * torch.log10(want.double().square().sum() / (want.double() - y.double()).square().sum()))

    least = {"w4a8": 32, "int4": 20, "nvfp4": 20}[json.loads((folder / "manifest.json").read_text())["format"]]
    assert db(got) > least and db(base) < db(got) - 6, (db(got), db(base))
