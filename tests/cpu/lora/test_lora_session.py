"""Session's side of LoRA slots, with ONNX Runtime in TensorRT's place."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.lora.factors import NodeRows
from svdq_trt.lora.slots import FILE, Slot, SlotTable, save_table
from svdq_trt.runtime import lora
from svdq_trt.runtime import session as sessions
from svdq_trt.runtime.lora import open_slots
from tests.harness.fake_engine import MODULE, Engine, HostMemory, on_host
from tests.harness.manifests import complete, file_entry

ROWS = NodeRows("to_kv", {"to_k": 0, "to_v": 64}, 128, 64)
TABLE = SlotTable("sdxl-tiny", "float16", 16, (Slot(ROWS, 16, 32),), {"to_k": (64, 64), "to_v": (64, 64)})
INPUTS = tuple(TABLE.input_names())


def write_graph(path, extra):
    """x [2, 64] -> y; of the slots' inputs only the names are asked for."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 64]) for name in ("x", *extra, "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:-1], values[-1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def folder(tmp_path):
    base = {"to_kv.lora_down": torch.ones(16, 64).half(), "to_kv.lora_up": torch.ones(128, 16).half()}
    save_table(tmp_path / FILE, TABLE, base)
    return tmp_path


@pytest.fixture
def opened(monkeypatch, folder):
    """Session(folder) with these inputs, this memory."""

    def open_session(extra=INPUTS, kind="torch", slots=True):
        write_graph(folder / "model.onnx", extra)
        memory = HostMemory()
        engine = Engine(folder / "model.onnx", memory)
        lora_slots = file_entry(folder / FILE) if slots else {}
        result = SimpleNamespace(
            manifest=complete(lora_slots=lora_slots),
            seconds={},
            backend=SimpleNamespace(module=MODULE, version="1"),
            folder=folder,
            plans=(SimpleNamespace(file="model.plan", sha256=""),),
            engines=(engine,),
            logger=SimpleNamespace(errors=""),
        )
        on_host(monkeypatch, memory, lambda *args, **more: result, kind)
        monkeypatch.setattr(lora, "open_slots", lambda folder, manifest, device: open_slots(folder, manifest, "cpu"))
        return sessions.Session(folder, runtime_cache=False), engine

    return open_session


def test_the_buffers_inputs_are_the_sessions_not_the_callers(opened, folder, tmp_path):
    session, engine = opened()
    assert [p.name for p in session.inputs] == ["x"] and session.output_names == ["y"]
    views = session.lora.views
    assert {n: a for n, a in engine.addresses.items() if n in views} == {n: v.data_ptr() for n, v in views.items()}
    assert set(engine.addresses) == {"x", "y", *views}
    before = {name: view.clone() for name, view in views.items()}
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 64, generator=g), torch.randn(64, 4, generator=g)
    save_file({"to_v.lora_A.weight": a, "to_v.lora_B.weight": b}, tmp_path / "l.safetensors")
    prepared = session.prepare_lora(tmp_path / "l.safetensors")
    session.set_lora(prepared, -0.5)
    down, up = views["to_kv.lora_down"].float(), views["to_kv.lora_up"].float()
    delta = up[:, 16:] @ down[16:]
    assert (delta[64:] + 0.5 * b @ a).norm() < 2e-3 * delta.norm() and not delta[:64].any()
    assert torch.equal(views["to_kv.lora_down"][:16], before["to_kv.lora_down"][:16])
    session.set_lora(None)
    assert all(torch.equal(view, before[name]) for name, view in views.items())
    session.close()
    assert session.lora is None


def test_engines_without_slots_and_memory_without_torch(opened, tmp_path):
    session, engine = opened(extra=(), slots=False)
    assert session.lora is None and set(engine.addresses) == {"x", "y"}
    for call in (session.prepare_lora, session.set_lora):
        with pytest.raises(UnsupportedError, match="an engine without LoRA slots, want one built with --lora-slots"):
            call("a.safetensors")
    with pytest.raises(UnsupportedError, match=r"LoRA slots: memory='pycuda', want memory='torch'"):
        opened(kind="pycuda")
    with pytest.raises(ArtifactError, match=r"input 'to_kv\.lora_down', which the engine lacks"):
        opened(extra=())
