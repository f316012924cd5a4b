"""The model that Triton's Python backend runs, with stand-ins for the backend's own classes: LoRAs by request."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import json_format
from onnx import TensorProto, helper
from safetensors.torch import save_file

from svdq_trt.cli import main
from svdq_trt.lora.factors import NodeRows
from svdq_trt.lora.slots import FILE, Slot, SlotTable, save_table
from svdq_trt.serve.config import from_text
from tests.harness.manifests import file_entry, tensor_entry, write_manifest

pytest.importorskip("tritonclient.grpc.model_config_pb2")
ROWS = NodeRows("to_kv", {"to_k": 0, "to_v": 64}, 128, 64)
TABLE = SlotTable("sdxl-tiny", "float16", 16, (Slot(ROWS, 16, 32),), {"to_k": (64, 64), "to_v": (64, 64)})


class Tensor:
    """``pb_utils.Tensor`` as far as the model asks."""

    def __init__(self, name, value):
        self._name, self.value = name, value

    @classmethod
    def from_dlpack(cls, name, capsule):
        return cls(
            name, np.from_dlpack(SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0)))
        )

    def name(self):
        return self._name

    def to_dlpack(self):
        return self.value.__dlpack__()


class TritonError(SimpleNamespace):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message, code):
        super().__init__(message=message, code=code)


@pytest.fixture
def model_class(monkeypatch):
    response = lambda outputs=(), error=None: SimpleNamespace(  # noqa: E731
        outputs={t.name(): t.value for t in outputs}, error=error
    )
    backend = SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=response,
        Logger=SimpleNamespace(log_info=print),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    importing = ("svdq_trt.serve.backend", "svdq_trt.serve.python_model")  # Triton's own module
    for name in importing:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("svdq_trt.serve.python_model").TritonPythonModel
    for name in importing:
        sys.modules.pop(name)


@pytest.fixture
def engine(tmp_path):
    """y [batch, 128] = up · down · x: nothing without a LoRA. The slots are those of two linears [64, 64]."""
    folder = tmp_path / "engine"
    folder.mkdir()
    save_table(
        folder / FILE,
        TABLE,
        {n: torch.zeros(s).half() for n, s in (("to_kv.lora_down", (16, 64)), ("to_kv.lora_up", (128, 16)))},
    )
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT16, ["b", 64])]
    inputs += [
        value(name, TensorProto.FLOAT16, s) for name, s in zip(TABLE.input_names(), ([48, 64], [128, 48]), strict=True)
    ]
    nodes = [
        helper.make_node("Transpose", ["to_kv.lora_down"], ["down"]),
        helper.make_node("Transpose", ["to_kv.lora_up"], ["up"]),
        helper.make_node("MatMul", ["x", "down"], ["t"]),
        helper.make_node("MatMul", ["t", "up"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "toy", inputs, [value("y", TensorProto.FLOAT16, ["b", 128])])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), folder / "model.onnx"
    )
    write_manifest(
        folder,
        onnx={"file": "model.onnx", "bytes": (folder / "model.onnx").stat().st_size},
        lora_slots=file_entry(folder / FILE),
        inputs=[tensor_entry("x", "float16", (1, 1, 4), (64, 64, 64))],
        outputs=[tensor_entry("y", "float16", (1, 1, 4), (128, 128, 128))],
    )
    return folder


@pytest.fixture
def loras(tmp_path):
    """Files by name, with the change of to_v's weight that each makes."""
    made = {}
    for seed, name in enumerate(("style", "face")):
        g = torch.Generator().manual_seed(seed)
        a, b = torch.randn(4, 64, generator=g).half(), torch.randn(64, 4, generator=g).half()
        save_file({"to_v.lora_A.weight": a, "to_v.lora_B.weight": b}, tmp_path / f"{name}.safetensors")
        made[name] = tmp_path / f"{name}.safetensors", (b.float() @ a.float()).numpy()
    return made


@pytest.fixture
def model(model_class, engine, loras, tmp_path):
    """Served with both LoRAs, `face` at half its strength, requests merged."""
    words = ["triton", str(engine), "--repository", str(tmp_path / "models"), "--device", "cpu", "--name", "m"]
    words += ["--lora", f"style={loras['style'][0]}", "--lora", f"face={loras['face'][0]}:0.5"]
    assert main([*words, "--dynamic-batching", "0"]) == 0
    folder = tmp_path / "models" / "m"
    config = json_format.MessageToDict(
        from_text((folder / "config.pbtxt").read_text()),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    model = model_class()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_device_id": "0",
            "model_instance_name": "m_0",
        }
    )
    yield model
    model.finalize()


def execute(model, *asked):
    """What the model answers to requests, each (x, parameters); and its runs and answers in the order that they had."""
    answers, order, run = [None] * len(asked), [], model._runner.run

    def counted(inputs):
        order.append("run")
        return run(inputs)

    def request(place, x, parameters):
        def send(answer, flags):
            assert answers[place] is None and flags == 1  # one answer, which is the last
            answers[place] = answer
            order.append(place)

        return SimpleNamespace(
            inputs=lambda: [Tensor("x", x)],
            parameters=lambda: json.dumps(parameters),
            get_response_sender=lambda: SimpleNamespace(send=send),
        )

    model._runner.run = counted
    assert model.execute([request(place, *one) for place, one in enumerate(asked)]) is None
    model._runner.run = run
    return answers, order


def test_requests_name_their_lora_and_others_do_not_get_it(model, loras):
    rng = np.random.default_rng(0)
    wanted = ["style", "", "face", "style:-2", "style", ""]
    xs = [rng.standard_normal((1, 64)).astype(np.float16) for _ in wanted]
    answers, order = execute(model, *((x, {"lora": n} if n else {}) for x, n in zip(xs, wanted, strict=True)))
    assert order == ["run", 0, 4, "run", 1, 5, "run", 2, "run", 3]  # nobody waits for those that run later
    strengths = {"style": ("style", 1), "style:-2": ("style", -2), "face": ("face", 0.5)}
    for x, name, answer in zip(xs, wanted, answers, strict=True):
        assert answer.error is None and answer.outputs["y"].shape == (1, 128)
        got = answer.outputs["y"].astype(np.float32)
        assert not got[:, :64].any()
        if not name:
            assert not got.any()
            continue
        lora, strength = strengths[name]
        want = strength * x.astype(np.float32) @ loras[lora][1].T
        assert np.abs(got[:, 64:] - want).max() < 2e-2 * np.abs(want).max()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("nobody", "request parameter 'lora': 'nobody', want one of style, face"),
        ("style:much", "request parameter 'lora': 'style:much', want NAME or NAME:STRENGTH"),
        ("style:nan", "strength: nan, want a finite number"),
        ("style:1e9", "at strength 1e"),
    ],
)
def test_a_lora_that_cannot_be_meant_is_the_callers_mistake(model, lora, message):
    x = np.ones((1, 64), np.float16)
    (bad, good), _ = execute(model, (x, {"lora": lora}), (x, {}))
    assert message in bad.error.message and bad.error.code == TritonError.INVALID_ARG
    assert good.error is None and not good.outputs["y"].any()


def test_a_lora_that_does_not_fit_is_refused_when_the_repository_is_written(engine, tmp_path, capsys):
    save_file(
        {"to_x.lora_A.weight": torch.ones(4, 64), "to_x.lora_B.weight": torch.ones(64, 4)}, tmp_path / "l.safetensors"
    )
    words = ["triton", str(engine), "--repository", str(tmp_path / "models"), "--device", "cpu"]
    assert main([*words, "--lora", f"a={tmp_path}/l.safetensors"]) == 1
    assert "l.safetensors" in capsys.readouterr().err and not (tmp_path / "models").exists()
    good = f"a={tmp_path}/l.safetensors"
    assert main([*words, "--lora", good, "--lora", good]) == 2
    assert "--lora: a name that is given twice" in capsys.readouterr().err
