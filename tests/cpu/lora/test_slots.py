"""Reserved rank, filled in ONNX Runtime: a swap is the LoRA built in, and taking it out is the base, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svdq_export import export_onnx, write_float32_twin
from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, SvdqError, UnsupportedError, UsageError
from svdq_trt.contract.formats import Activation
from svdq_trt.lora.factors import Loaded, NodeRows, extend
from svdq_trt.lora.names import name_table
from svdq_trt.lora.read import read_lora
from svdq_trt.lora.slots import FILE, base_factors, install_slots, load_table, save_table
from svdq_trt.models import get_model
from svdq_trt.runtime.lora import LoraSlots, check_inputs_match, require_slots
from tests.harness.export_toy import db, session, svdq

ROWS = [
    NodeRows("to_qkv", {"to_q": 0, "to_k": 64, "to_v": 128}, 192, 128),
    NodeRows("ff", {"ff.proj": 0}, 128, 64),
    NodeRows("out", {"out": 0}, 64, 64),
]
SHAPES = {
    "to_q": (64, 128),
    "to_k": (64, 128),
    "to_v": (64, 128),
    "ff.proj": (128, 64),
    "out": (64, 64),
    "proj": (24, 64),
    "conv": (8, 24, 3, 3),
}
NODES_ONLY = ["to_q", "to_k", "to_v", "ff.proj", "out"]
S = 16


class Net(nn.Module):
    """Three linears (one fused, one SwiGLU, one without a base rank), a linear kept in 16 bit, a convolution.

    `ff` and `out` are one node of the graph; their LoRAs have slots of their own all the same.
    """

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_qkv = svdq("w4a16", 128, 192, 32, dtype)
        self.ff = svdq("int4", 64, 128, 16, dtype, Activation.SWIGLU)
        self.out = svdq("int4", 64, 64, 0, dtype)
        self.proj = nn.Linear(64, 24, dtype=dtype)
        self.conv = nn.Conv2d(24, 8, 3, padding=1, dtype=dtype)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[M, 128] -> [M, 8]."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        y = self.out(self.ff(q + k * 0.5 - v))
        return self.conv(self.proj(y).T[None, :, :, None])[0, :, :, 0].T


def write_lora(path, layers, rank=4, seed=0, size=0.3):
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        n, k, *more = SHAPES[layer]
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, k, *more, generator=g) * k**-0.5
        tensors[f"{layer}.lora_B.weight"] = torch.randn(n, rank, *(1 for _ in more), generator=g) * size
    save_file(tensors, path)
    return path


def export(module, folder, inputs=(), dtype=torch.float16):
    folder.mkdir(exist_ok=True)
    x = {"x": torch.randn(9, 128, generator=torch.Generator().manual_seed(3)).to(dtype)}
    export_onnx(module, x, {"x": {0: "tokens"}}, ["y"], folder / "model.onnx", runtime_inputs=inputs)
    return folder / "model.onnx", x


def run(path, x, slots=None):
    feed = {name: t.numpy() for name, t in {**x, **(slots.views if slots else {})}.items()}
    return session(str(path)).run(None, feed)[0]


@pytest.fixture(scope="module")
def slotted(tmp_path_factory):
    """A graph with 16 ranks a linear: path, inputs, and the file that fills it."""
    folder = tmp_path_factory.mktemp("slotted")
    module = Net()
    table = install_slots(module, ROWS, "sdxl-tiny", torch.float16, S, SHAPES)
    path, x = export(module, folder, table.input_names())
    save_table(folder / FILE, table, base_factors(module, table))
    return path, x, folder / FILE


@pytest.fixture
def slots(slotted):
    return LoraSlots(slotted[2])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path, x = export(Net(), tmp_path_factory.mktemp("plain"))
    return run(path, x)


def built_in(folder, *loras, rank):
    """The graph with LoRAs of the nodes put in at build, padded to the slots' rank."""
    module, table = Net(), name_table(get_model("sdxl-tiny"), SHAPES)
    files = [(read_lora(path, table, SHAPES), strength) for path, strength in loras]
    loaded = [Loaded(file, strength, file.by_layer()) for file, strength in files]
    for rows in ROWS:
        node = module.get_submodule(rows.name)
        extended = extend(node.lora_down, node.lora_up, loaded, rows)
        down, up = extended.down, extended.up
        missing = node.lora_down.shape[0] + rank * len(rows.first) - down.shape[0]
        node.lora_down = nn.functional.pad(down, (0, 0, 0, missing))
        node.lora_up = nn.functional.pad(up, (0, missing))
    return run(*export(module, folder))


def test_empty_slots_are_the_base(slotted, slots, plain):
    path, x, _ = slotted
    inputs = {n.name: list(n.input) for n in onnx.load(path, load_external_data=False).graph.node if n.domain == "svdq"}
    assert list(inputs) == ["to_qkv", "ff+out"]
    assert {f"{name}.lora_{part}" for name in ("ff", "out") for part in ("down", "up")} < {*inputs["ff+out"]}
    assert len(slots.views) == 8 and slots.views["to_qkv.lora_up"].shape == (192, 32 + 3 * S)
    assert np.array_equal(run(path, x, slots), plain)


@pytest.mark.parametrize("strength", [1.0, 0.7, -1.3])
def test_a_swap_is_the_lora_built_in(slotted, slots, plain, tmp_path, strength):
    path, x, _ = slotted
    lora = write_lora(tmp_path / "a.safetensors", NODES_ONLY, rank=8)
    addresses = {name: view.data_ptr() for name, view in slots.views.items()}
    slots.fill(slots.prepare(lora), strength)
    got = run(path, x, slots)
    assert np.array_equal(got, built_in(tmp_path / "built", (lora, strength), rank=S))
    assert db(torch.from_numpy(plain), torch.from_numpy(got)) < 25
    slots.clear()
    assert np.array_equal(run(path, x, slots), plain)
    assert addresses == {name: view.data_ptr() for name, view in slots.views.items()}


def test_strengths_swap_and_combine(slotted, slots, plain, tmp_path):
    path, x, _ = slotted
    a = write_lora(tmp_path / "a.safetensors", NODES_ONLY, rank=8, seed=1)
    b = write_lora(tmp_path / "b.safetensors", NODES_ONLY[1:], rank=8, seed=2)
    one, both = slots.prepare(a), slots.prepare([(a, 0.5), (b, -1.0)])
    slots.fill(one, 0.0)
    assert np.array_equal(run(path, x, slots), plain)
    slots.fill(both, 0.6)
    want = built_in(tmp_path / "both", (a, 0.3), (b, -0.6), rank=S)
    assert np.array_equal(run(path, x, slots), want)
    slots.fill(one, 1.0)  # over the larger set: nothing of it stays
    assert np.array_equal(run(path, x, slots), built_in(tmp_path / "one", (a, 1.0), rank=S))
    slots.fill(both, 0.6)
    assert np.array_equal(run(path, x, slots), want)
    slots.fill(slots.prepare(None))
    assert np.array_equal(run(path, x, slots), plain)


def test_a_linear_kept_in_16_bit_gets_its_lora(slotted, slots, tmp_path):
    path, x, _ = slotted
    lora = write_lora(tmp_path / "p.safetensors", ["proj"], rank=16)
    slots.fill(slots.prepare(lora), 0.5)
    module = Net()
    factors = load_file(lora)
    delta = 0.5 * factors["proj.lora_B.weight"] @ factors["proj.lora_A.weight"]
    module.proj.weight = nn.Parameter((module.proj.weight.float() + delta).half(), requires_grad=False)
    want, got = run(*export(module, tmp_path / "dense")), run(path, x, slots)
    assert db(torch.from_numpy(want), torch.from_numpy(got)) > 55  # t and the branch are rounded to f16


def test_what_does_not_fit_leaves_all_as_it_was(slotted, slots, tmp_path):
    path, x, _ = slotted
    good = write_lora(tmp_path / "good.safetensors", NODES_ONLY, rank=8)
    slots.fill(slots.prepare(good))
    before = run(path, x, slots)
    big = write_lora(tmp_path / "big.safetensors", NODES_ONLY, rank=17)
    with pytest.raises(ShapeError, match=r"to_qkv: LoRAs that take rank 51, want at most 48\. .*--lora-slots 32"):
        slots.prepare(big)
    with pytest.raises(ShapeError, match=r"rank 72, want at most 48\..*--lora-slots 32"):
        slots.prepare([(good, 1.0)] * 3)
    conv = write_lora(tmp_path / "conv.safetensors", ["proj", "conv"])
    with pytest.raises(ArtifactError, match=r"conv: a convolution, which has no slot.*--lora"):
        slots.prepare(conv)
    assert slots.prepare(conv, allow_partial=True).files
    save_file({"nowhere.lora_A.weight": torch.ones(4, 8)}, tmp_path / "no.safetensors")
    with pytest.raises(ArtifactError, match=r"nowhere: no layer of this model.*allow_partial=True"):
        slots.prepare(tmp_path / "no.safetensors")
    for strength in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="strength: "):
            slots.fill(slots.prepare(big.with_name("good.safetensors")), strength)
    with pytest.raises(UsageError, match="a set prepared for another engine"):
        slots.fill(LoraSlots(slotted[2]).prepare(good))
    with pytest.raises(RangeError, match="overflows"):
        slots.fill(slots.prepare(good), 1e6)
    assert np.array_equal(run(path, x, slots), before)


def test_three_loras_share_a_fused_nodes_slots_unevenly(slotted, slots, tmp_path):
    """to_qkv reserves 3 x 16: a LoRA of to_q alone may have rank 48."""
    _, _, _ = slotted
    lora = write_lora(tmp_path / "q.safetensors", ["to_q"], rank=48)
    slots.fill(slots.prepare(lora))
    assert slots.views["to_qkv.lora_down"][32:].count_nonzero() == 48 * 128


def test_bfloat16_by_its_twin(tmp_path):
    module = Net(torch.bfloat16)
    table = install_slots(module, ROWS, "sdxl-tiny", torch.bfloat16, S, SHAPES)
    path, x = export(module, tmp_path / "b", table.input_names(), torch.bfloat16)
    save_table(tmp_path / FILE, table, base_factors(module, table))
    slots = LoraSlots(tmp_path / FILE)
    assert slots.views["ff.lora_up"].dtype == torch.bfloat16
    slots.fill(slots.prepare(write_lora(tmp_path / "a.safetensors", NODES_ONLY, rank=8)), 0.7)
    feed = {name: t.float().numpy() for name, t in {**x, **slots.views}.items()}
    got = torch.from_numpy(session(str(write_float32_twin(path))).run(None, feed)[0])
    with torch.inference_mode():
        live = Net(torch.bfloat16)
        for rows in ROWS:
            node = live.get_submodule(rows.name)
            node.lora_down, node.lora_up = (slots.views[f"{rows.name}.lora_{part}"] for part in ("down", "up"))
        want = live.float()(x["x"].float())
    assert db(want, got) > 45


def test_limits_and_refusals(slotted, tmp_path):
    with pytest.raises(ShapeError, match=r"to_qkv: rank 32 \+ 1008 slots, want at most 1024"):
        install_slots(Net(), ROWS, "sdxl-tiny", torch.float16, 1008, SHAPES)
    table = install_slots(Net(), ROWS, "sdxl-tiny", torch.float16, 336, SHAPES)  # 3 x 336 is more than there is
    assert [slot.rank for slot in table.slots] == [1024, 352, 336, 336]
    with pytest.raises(UnsupportedError, match="an engine without LoRA slots"):
        require_slots(None)
    slots = LoraSlots(slotted[2])
    check_inputs_match(slots, ["x", *slots.views])
    with pytest.raises(ArtifactError, match=r"input 'to_qkv\.lora_down', which the engine lacks"):
        check_inputs_match(slots, ["x"])


def test_damaged_tables_are_refused(slotted, tmp_path):
    good = Path(slotted[2]).read_bytes()
    bad = tmp_path / FILE
    changes = (
        (b"svdq_lora_slots", b"svdq_lora_slotz"),
        (b'version\\": 1', b'version\\": 9'),
        (b'reserved\\": 48', b'reserved\\": xx'),
        (b'"ff.lora_up"', b'"fg.lora_up"'),
    )
    for damage in (b"", good[:100], good[: len(good) // 2], *(good.replace(*change) for change in changes)):
        assert damage != good
        bad.write_bytes(damage)
        with pytest.raises(ArtifactError, match=FILE):
            load_table(bad)
    with pytest.raises(ArtifactError, match=FILE):
        load_table(tmp_path / "none" / FILE)


def test_damaged_headers_are_one_sentence(slotted, tmp_path):
    """Values of the inner JSON of other types and sizes, brackets without end, text cut: refused, or a usable table."""
    with safe_open(slotted[2], framework="pt") as file:
        header = json.loads(file.metadata()["svdq_lora_slots"])
    tensors, rng, bad, refused = load_file(slotted[2]), random.Random(0), tmp_path / FILE, 0
    values = [None, True, -1, 0, 7, 48, 10**9, 10**30, 1.5, "x", "\x00", [], {}, [[]], {"a": {}}, [1, 2], ["to_q"]]

    def damaged(value):
        if rng.random() < 0.04:
            return rng.choice(values)
        if isinstance(value, dict):
            return {key: damaged(item) for key, item in value.items() if rng.random() > 0.01}
        return [damaged(item) for item in value] if isinstance(value, list) else value

    for i in range(600):
        text = json.dumps(damaged(header))
        if i % 10 == 0:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["[" * 5000, '{"a":' * 3000, '"', ""]) + text[at + rng.randrange(3) :]
        save_file(tensors, bad, metadata={"svdq_lora_slots": text})
        try:
            assert LoraSlots(bad).views
        except SvdqError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 300 < refused < 600


def test_what_slots_cannot_hold_is_said(slots, tmp_path):
    """A DoRA and a change of a bias need what only a build has; a full matrix takes the rank that is left."""
    lora = write_lora(tmp_path / "a.safetensors", ["to_q"], rank=4)
    tensors = load_file(lora)
    for more, text in (
        ({"to_q.lora_magnitude_vector": torch.ones(64)}, "to_q: DoRA, which is made of the model's own weights"),
        ({"to_q.lora_B.bias": torch.ones(64)}, "to_q: a change of a bias, which has no slot"),
    ):
        save_file(tensors | more, lora)
        with pytest.raises(ArtifactError, match=rf"{text}.*or build it in with --lora"):
            slots.prepare(lora)
    g = torch.Generator().manual_seed(0)
    one, two = torch.eye(4), torch.randn(16, 32, generator=g) * 0.7 ** torch.arange(32.0)
    save_file({"to_q.lokr_w1": one, "to_q.lokr_w2": two}, lora)
    prepared = slots.prepare(lora)
    slots.fill(prepared)
    got = slots.views["to_qkv.lora_up"].float()[:, 32:] @ slots.views["to_qkv.lora_down"].float()[32:]
    want = torch.kron(one, two)
    (cut,) = prepared.cut
    assert cut.rank <= 48 and cut.error < 0.05
    assert abs(float((got[:64] - want).norm() / want.norm()) - cut.error) < 3e-3 and not got[64:].any()
    save_file({"proj.lokr_w1": one[:2, :2].contiguous(), "proj.lokr_w2": torch.randn(12, 32, generator=g)}, lora)
    for rank in (12, 16, 20):  # leave four ranks, none, and less than none
        other = write_lora(tmp_path / "b.safetensors", ["proj"], rank=rank)
        with pytest.raises(ShapeError, match=r"proj: a change of full rank of which rank \d+ loses \d+ %.*lora-slots"):
            slots.prepare([(other, 1.0), (lora, 1.0)])
