"""Adapters that are no plain LoRA, in quantized nodes and in 16-bit layers; and those that are refused, by their names.

What they are in themselves is compared with the libraries that made them in test_peers.py.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.checkpoint import open_weights
from svdq_trt.lora.apply import LoraRequest, apply_loras, check_loras, layer_shapes, node_rows, without_loras
from svdq_trt.lora.names import name_table
from svdq_trt.lora.read import read_lora
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of
from tests.harness.lora_files import make_factors

FLUX = get_model("flux1-tiny")
SHAPES = layer_shapes(FLUX)
NAMES = name_table(FLUX, SHAPES)
Q, DOWN, OUT = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.0.proj_out"
KEPT = "proj_out"


@pytest.fixture(scope="module")
def weights():
    return open_weights(FLUX, random_seed=0)


def apply(base, path, out, weights=None, strength=1.0):
    entries = apply_loras(base, [LoraRequest(path, strength)], FLUX, False, out, lambda *a: None, weights)
    return svdq_file.load(out), entries[0]


def read(path, tensors):
    save_file(tensors, path)
    return read_lora(path, NAMES, SHAPES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def db(want, got):
    return float(10 * torch.log10(want.double().square().sum() / (want.double() - got.double()).square().sum()))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_doras_rows_are_exact_in_quantized_nodes(flux_base, weights, tmp_path, strength):
    """y = c · (W x) + c · B A x + b with c = m / ‖W + B A‖, strength inside: also where the bias undoes a shift of the
    codes, and where a linear is two nodes by its columns."""
    layers, before = (Q, DOWN, OUT, KEPT), svdq_file.load(flux_base)
    factors = make_factors(FLUX, layers, rank=4, alpha=4)
    tensors, ratios = {}, {}
    for i, (name, f) in enumerate(factors.items()):
        weight = weights.read(f"{name}.weight").float()
        magnitude = weight.norm(dim=1) * (1 + 0.3 * random(len(f.up), seed=i).abs())
        tensors |= {f"{name}.lora_A.weight": f.down, f"{name}.lora_B.weight": f.up}
        tensors[f"{name}.lora_magnitude_vector"] = magnitude
        ratios[name] = magnitude / (weight + strength * f.up.float() @ f.down.float()).norm(dim=1)
    save_file(tensors, tmp_path / "dora.safetensors")
    after, entry = apply(flux_base, tmp_path / "dora.safetensors", tmp_path / "out", weights, strength)
    assert not entry.cut and entry.dense_layers == (KEPT,)
    rows, seen, shifted = node_rows(before.nodes, FLUX), [], 0
    for old, new in zip(before.nodes, after.nodes, strict=True):
        for key in ("qweight", "wscale", "act_mul"):
            assert torch.equal(before.tensors[f"{old.name}.{key}"], after.tensors[f"{new.name}.{key}"])
        member = next((name for name in layers if name in old.members), None)
        if member is None:
            assert torch.equal(before.tensors[f"{old.name}.bias"], after.tensors[f"{new.name}.bias"])
            continue
        x = random(9, old.k, seed=3).abs() * 0.3
        one, two = layer_of(old, before.tensors).float(), layer_of(new, after.tensors).float()
        columns = rows[old.name].columns or (0, old.k)
        bias = torch.zeros(1) if columns[0] else weights.read(f"{member}.bias").float()
        f, n, want = factors[member], SHAPES[member][0], one(x)
        branch = strength * x @ f.down.float()[:, slice(*columns)].T @ f.up.float().T
        unchanged = want.clone()
        want[:, :n] = ratios[member] * (want[:, :n] - bias + branch) + bias
        assert db(want, two(x)) > 40 > 25 > db(want, unchanged), old.name  # factors and bias in bf16
        shifted += bool(one.weights.act_shift)
        seen.append(old.name)
    assert len(seen) == 4 and shifted == 2
    assert {n.name for n in before.nodes} - {n.name for n in without_loras(after).nodes} == set(seen)


def test_full_matrices_become_factors_and_the_loss_is_stated(flux_base, tmp_path):
    """LoKr with a full second matrix: exact in a 16-bit layer, cut to the rank that matters in a node."""

    def lokr(name, scale):
        n, k = SHAPES[name]
        two = random(n // 4, k // 4, seed=n) @ torch.diag(0.8 ** torch.arange(k // 4.0)) * scale
        return {f"{name}.lokr_w1": random(4, 4, seed=k), f"{name}.lokr_w2": two}

    tensors = lokr(Q, 0.02) | lokr(KEPT, 0.02)
    save_file(tensors, tmp_path / "lokr.safetensors")
    before = svdq_file.load(flux_base)
    after, entry = apply(flux_base, tmp_path / "lokr.safetensors", tmp_path / "out", strength=0.5)
    (cut,) = entry.cut
    whole = {n: 0.5 * torch.kron(tensors[f"{n}.lokr_w1"], tensors[f"{n}.lokr_w2"]) for n in (Q, KEPT)}
    (old,), (new,) = ([n for n in one.nodes if Q in n.members] for one in (before, after))
    got = (layer_of(new, after.tensors).dequantize() - layer_of(old, before.tensors).dequantize())[: SHAPES[Q][0]]
    assert cut.node == new.name and 0.001 < cut.error < 0.02 and cut.rank == new.rank < 16 + 128
    assert abs(float((got - whole[Q]).norm() / whole[Q].norm()) - cut.error) < 3e-3
    summed = (before.tensors[f"{KEPT}.weight"].float() + whole[KEPT]).bfloat16()
    assert torch.equal(after.tensors[f"{KEPT}.weight"], summed)
    save_file({f"{DOWN}.lokr_w1": torch.eye(8), f"{DOWN}.lokr_w2": random(16, 64)}, tmp_path / "flat.safetensors")
    assert apply(flux_base, tmp_path / "flat.safetensors", tmp_path / "out")[1].cut == ()  # rank 128 is all of it


def test_differences_of_weights_and_biases(flux_base, weights, tmp_path):
    """ComfyUI's diff and diff_b, of a node's member and of a 16-bit layer; zeros change nothing at all."""
    before = svdq_file.load(flux_base)
    tensors = {f"diffusion_model.{n}.diff_b": random(SHAPES[n][0], seed=1) for n in (Q, DOWN, KEPT)}
    tensors[f"diffusion_model.{KEPT}.diff"] = random(*SHAPES[KEPT]) * 0.1
    save_file(tensors, tmp_path / "diff.safetensors")
    after, entry = apply(flux_base, tmp_path / "diff.safetensors", tmp_path / "out", strength=-0.5)
    assert not entry.cut
    for node in before.nodes:
        got = after.tensors[f"{node.name}.bias"].float() - before.tensors[f"{node.name}.bias"].float()
        name = next((n for n in (Q, DOWN) if n in node.members), None)
        want = torch.zeros(node.n)
        if name:
            want[: SHAPES[name][0]] = -0.5 * tensors[f"diffusion_model.{name}.diff_b"]
        assert (got - want).abs().max() < 0.02, node.name
    for part, key in (("weight", "diff"), ("bias", "diff_b")):
        moved = after.tensors[f"{KEPT}.{part}"].float() - before.tensors[f"{KEPT}.{part}"].float()
        assert (moved + 0.5 * tensors[f"diffusion_model.{KEPT}.{key}"]).abs().max() < 0.02
    save_file({name: torch.zeros_like(t) for name, t in tensors.items()}, tmp_path / "zero.safetensors")
    after, _ = apply(flux_base, tmp_path / "zero.safetensors", tmp_path / "out")
    assert after.nodes == before.nodes and after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(t, before.tensors[name]) for name, t in after.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.bfloat16])
def test_factors_of_any_float(tmp_path, dtype):
    f = make_factors(FLUX, [Q], rank=4, alpha=8)[Q]
    down, up = f.down.to(dtype), f.up.to(dtype)
    lora = read(tmp_path / "x.safetensors", {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up})
    delta = lora.changes[0].delta()
    assert torch.equal(delta.down, down.float()) and torch.equal(delta.up, up.float())


def test_two_spellings_of_a_layer_count_once_if_they_agree(tmp_path):
    f = make_factors(FLUX, [Q], rank=4)[Q]
    tensors = {}
    for prefix in ("transformer.", "diffusion_model."):
        tensors |= {f"{prefix}{Q}.lora_A.weight": f.down.clone(), f"{prefix}{Q}.lora_B.weight": f.up.clone()}
    lora = read(tmp_path / "x.safetensors", tensors)
    assert len(lora.changes) == 1 and not lora.problems
    tensors[f"diffusion_model.{Q}.lora_B.weight"] = f.up * 2
    ((_, reason),) = read(tmp_path / "x.safetensors", tensors).problems
    assert reason.startswith("the layer of '") and reason.endswith("again, with other values")
    tensors[f"diffusion_model.{Q}.lora_B.weight"] = f.up.clone()
    tensors[f"diffusion_model.{Q}.alpha"] = torch.tensor(1.0)
    assert read(tmp_path / "x.safetensors", tensors).problems


N, K = SHAPES[Q]
LORA = {"lora_A.weight": torch.ones(4, K), "lora_B.weight": torch.ones(N, 4)}


@pytest.mark.parametrize(
    ("name", "parts", "reason"),
    [
        (
            "img_in",
            {"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(128, 4)},
            "for 32 inputs, as a control",
        ),
        ("double_blocks.0.img_attn.norm", {"query_norm.scale": torch.ones(32)}, "a control LoRA's norm layer"),
        (Q, {"oft_r": torch.ones(4, 496)}, "OFT of an older form"),
        (Q, {"oft_R.weight": torch.ones(4, 497)}, "rotations [4, 497] of a layer"),
        (Q, {"oft_R.weight": torch.ones(3, 496)}, "rotations [3, 496] of a layer"),
        (Q, {"boft_R": torch.ones(4)}, "BOFT, a product of rotations"),
        (Q, {"a1.weight": torch.ones(4)}, "GLoRA"),
        (Q, {"ia3_l": torch.ones(4)}, "IA3, a scaling of activations"),
        ("norm_out", {"w_norm": torch.ones(4)}, "a change of a norm layer"),
        (Q, {"set_weight": torch.ones(4)}, "a whole weight in place of the model's"),
        (Q, {"weight": torch.ones(N, K)}, "no LoRA tensor"),
        (Q, LORA | {"scale_weight": torch.ones(1)}, "a scale of fp8 factors"),
        (Q, LORA | {"hada_w1_a": torch.ones(4)}, "parts that do not belong together"),
        (Q, LORA | {"diff": torch.ones(N, K)}, "parts that do not belong together"),
        (Q, LORA | {"lora_B.bias": torch.ones(3)}, "bias [3], want [128]"),
        (Q, LORA | {"dora_scale": torch.ones(3)}, "dora_scale [3] of a layer [128, 128]"),
        (Q, LORA | {"lora_magnitude_vector": torch.ones(4, 32)}, "magnitude [4, 32]"),
        (Q, LORA | {"lora_magnitude_vector": torch.ones(N), "dora_scale": torch.ones(N)}, "parts that do not belong"),
        (Q, LORA | {"alpha": torch.ones(2)}, "alpha of shape [2]"),
        (Q, {"lora_A.weight": torch.ones(0, K), "lora_B.weight": torch.ones(N, 0)}, "a tensor without values"),
        (Q, {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(N, K)}, "factors [4, 4] and [128, 128], a layer"),
        (Q, {"lokr_w1": torch.ones(4), "lokr_w2": torch.ones(N, K)}, "factors [4] and [128, 128] of a layer"),
        (
            Q,
            {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(32, 2), "lokr_w2_b": torch.ones(3, 32)},
            "factors [4, 4] and []",
        ),
        (Q, {f"hada_w{i}_{j}": torch.ones(N, 4) for i in (1, 2) for j in "ab"}, "hada_w1_a [128, 4], want [128, 128]"),
        (Q, {"oft_blocks": torch.ones(4, 32, 16)}, "blocks [4, 32, 16] of a layer"),
        (Q, {"oft_blocks": torch.ones(4, 32, 32), "rescale": torch.ones(4)}, "rescale [4], want [128]"),
        (Q, {"diff": torch.ones(4, 4)}, "diff [4, 4], want [128, 128]"),
        (Q, {"diff_b": torch.ones(4)}, "diff_b [4], want [128]"),
    ],
)
def test_what_is_refused_and_how_it_is_called(tmp_path, name, parts, reason):
    lora = read(tmp_path / "x.safetensors", {f"{name}.{part}": t.clone() for part, t in parts.items()})
    assert not lora.changes
    assert any(text.startswith(reason) for _, text in lora.problems), lora.problems


def test_values_are_checked_before_any_work(tmp_path):
    f = make_factors(FLUX, [Q], rank=4)[Q]
    save_file({f"{Q}.lora_A.weight": f.down, f"{Q}.lora_B.weight": f.up / 0}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match=r"lora_B\.weight': NaN or Inf, want finite values"):
        check_loras([LoraRequest(tmp_path / "x.safetensors")], FLUX, False)
    tensors = {f"{Q}.lora_A.weight": f.down, f"{Q}.lora_B.weight": f.up, f"{Q}.lora_magnitude_vector": torch.ones(N)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert check_loras([LoraRequest(tmp_path / "x.safetensors")], FLUX, False)
    assert not check_loras([LoraRequest(tmp_path / "x.safetensors", 0.0)], FLUX, False)


def test_a_whole_bias_replaces_the_models_and_not_the_nodes(flux_base, weights, tmp_path):
    """PEFT's modules_to_save on a node whose bias undoes a shift of the codes: it changes by the difference alone."""
    before = svdq_file.load(flux_base)
    (node,) = (n for n in before.nodes if n.name == DOWN)
    assert node.act_shift
    change = random(node.n)
    parts = {"weight": weights.read(f"{DOWN}.weight"), "bias": weights.read(f"{DOWN}.bias").float() + change}
    save_file({f"base_model.model.{DOWN}.{part}": t for part, t in parts.items()}, tmp_path / "a.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "modules_to_save": ["net.2"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    after, _ = apply(flux_base, tmp_path / "a.safetensors", tmp_path / "out", weights)
    got = after.tensors[f"{DOWN}.bias"].float() - before.tensors[f"{DOWN}.bias"].float()
    assert (got - change).abs().max() < 0.02 * change.abs().max()
