"""LoRAs in a quantized model: no 4-bit code changes, and the result is the model that had them merged before."""

from __future__ import annotations

import json

import pytest
import torch

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.manifest import to_json
from svdq_trt.base.errors import ArtifactError
from svdq_trt.checkpoint import load
from svdq_trt.lora.apply import LoraRequest, apply_loras, layer_shapes, merge_into, open_loras, without_loras
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model
from tests.harness.lora_files import make_factors, write_comfy, write_kohya, write_peft

SIZE = 0.12  # of the style, so that its change of the output exceeds the 4-bit noise
QUANTIZED = ("qweight", "wscale", "wscale2", "act_mul", "bias")


def apply(base, out, *loras, spec, partial=False):
    requests = [LoraRequest(path, strength) for path, strength in loras]
    summary = apply_loras(base, requests, spec, partial, out, lambda *a: None)
    return svdq_file.load(out), summary


def db(want, got):
    return float(10 * torch.log10(want.double().square().sum() / (want.double() - got.double()).square().sum()))


def every_layer(spec):
    return list(layer_shapes(spec))


@pytest.fixture(scope="module")
def style(tmp_path_factory, spec):
    """A LoRA of every linear and convolution."""
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    return write_kohya(path, make_factors(spec, every_layer(spec), rank=4, seed=1, size=SIZE), spec)


@pytest.fixture(scope="module")
def applied(base, style, spec, tmp_path_factory):
    return apply(base, tmp_path_factory.mktemp("out") / "svdq.safetensors", (style, 0.8), spec=spec)


def test_no_code_scale_or_smoothing_changes(base, applied):
    before, (after, _) = svdq_file.load(base), applied
    assert [n.name for n in after.nodes] == [n.name for n in before.nodes]
    for node in after.nodes:
        for name in QUANTIZED:
            key = f"{node.name}.{name}"
            assert torch.equal(before.tensors[key].view(torch.uint8), after.tensors[key].view(torch.uint8)), key
        rank = before.tensors[f"{node.name}.lora_down"].shape[0]
        assert torch.equal(after.tensors[f"{node.name}.lora_down"][:rank], before.tensors[f"{node.name}.lora_down"])
        assert torch.equal(after.tensors[f"{node.name}.lora_up"][:, :rank], before.tensors[f"{node.name}.lora_up"])


def test_nodes_without_loras_are_the_quantizers(base, style, spec, tmp_path):
    before, once = svdq_file.load(base), tmp_path / "once"
    apply(base, once, (style, 0.8), spec=spec)
    twice, _ = apply(once, tmp_path / "twice", (style, 0.5), spec=spec)
    back = without_loras(twice)
    assert back.nodes == before.nodes != twice.nodes and without_loras(before).nodes == before.nodes
    for node in before.nodes:
        for name in (*QUANTIZED, "lora_down", "lora_up"):
            assert torch.equal(back.tensors[f"{node.name}.{name}"], before.tensors[f"{node.name}.{name}"])


def test_every_layers_weight_moves_by_the_lora(base, applied, style, spec):
    """Node by node and layer by layer, against the file's own factors; to the rounding of 16-bit factors or sums."""
    before, (after, _) = svdq_file.load(base), applied
    factors = make_factors(spec, every_layer(spec), rank=4, seed=1, size=SIZE)
    shapes, seen = layer_shapes(spec), set()

    def delta(layer):
        f = factors[layer]
        return 0.8 * f.alpha / 4 * f.up.double().flatten(1) @ f.down.double().flatten(1)

    for old, new in zip(before.nodes, after.nodes, strict=True):
        got = layer_of(new, after.tensors).dequantize() - layer_of(old, before.tensors).dequantize()
        want = torch.cat([delta(m) for m in old.members])
        assert db(want, got) > 55, old.name  # measured 63 and more: two f16 factors
        seen |= set(old.members)
    for layer in set(shapes) - seen:
        got = (after.tensors[f"{layer}.weight"].double() - before.tensors[f"{layer}.weight"].double()).flatten(1)
        assert (got - delta(layer)).abs().max() <= before.tensors[f"{layer}.weight"].abs().max() * 2**-10, layer
        seen.add(layer)
    assert seen == set(shapes)


@pytest.mark.parametrize("strength", [0.8, -0.6])
def test_output_is_that_of_the_model_with_the_lora_merged_before_quantization(base, style, spec, tmp_path, strength):
    """The quantized model with the LoRA is about as far from the merged 16-bit model as the base is from its own.

    What 4 bits cost sets that distance: measured 26.0 dB for the base, 25.0 and 24.3 dB with the LoRA, which changes
    the activations that smoothing and low-rank branch were chosen for. The LoRA itself changes the output by 10 dB, so
    one that is left out or applied at another strength fails.
    """
    inputs = spec.example_inputs(batch=1, height=64, width=64, seed=5)
    full, merged = load(spec, random_seed=0), load(spec, random_seed=0)
    merge_into(merged, open_loras([LoraRequest(style, strength)], spec, layer_shapes(spec), False))
    with_lora = restore_model(apply(base, tmp_path / "l.safetensors", (style, strength), spec=spec)[0], spec)
    without = restore_model(svdq_file.load(base), spec)
    with torch.inference_mode():
        # f32: the CPU has no fast f16, and the noise of interest is 4-bit
        y = {
            name: spec.wrap(m.float())(*(t.float() for t in inputs))
            for name, m in {"full": full, "merged": merged, "lora": with_lora, "base": without}.items()
        }
    quality, reference = db(y["merged"], y["lora"]), db(y["full"], y["base"])
    change = db(y["merged"], y["base"])
    assert change < 14, change
    assert quality > reference - 3, (quality, reference)
    assert quality > change + 9, (quality, change)


def test_strength_zero_is_no_lora(base, style, spec, tmp_path):
    after, summary = apply(base, tmp_path / "x.safetensors", (style, 0.0), spec=spec)
    before = svdq_file.load(base)
    assert after.nodes == before.nodes and set(after.tensors) == set(before.tensors)
    assert all(torch.equal(t, before.tensors[name]) for name, t in after.tensors.items())
    assert summary[0].strength == 0 and len(summary[0].sha256) == 64


def test_spellings_give_the_same_artifact(base, spec, tmp_path):
    factors = make_factors(spec, every_layer(spec)[::3], rank=4, seed=2)
    files = [
        write_peft(tmp_path / "p.safetensors", factors),
        write_kohya(tmp_path / "k.safetensors", factors, spec),
        write_comfy(tmp_path / "c.safetensors", factors, spec),
    ]
    got = [apply(base, tmp_path / f"{i}.out", (path, 0.7), spec=spec)[0] for i, path in enumerate(files)]
    for other in got[1:]:
        assert other.nodes == got[0].nodes
        assert all(torch.equal(t, other.tensors[name]) for name, t in got[0].tensors.items())


def test_two_loras_are_the_sum_of_both(base, style, spec, tmp_path):
    second = write_peft(tmp_path / "b.safetensors", make_factors(spec, every_layer(spec)[::2], rank=8, seed=3))
    both, summary = apply(base, tmp_path / "both", (style, 0.8), (second, -0.5), spec=spec)
    one, other = (
        apply(base, tmp_path / str(i), lora, spec=spec)[0] for i, lora in enumerate([(style, 0.8), (second, -0.5)])
    )
    before = svdq_file.load(base)
    for nodes in zip(before.nodes, one.nodes, other.nodes, both.nodes, strict=True):
        sources = (before, one, other, both)
        w0, w1, w2, w12 = (layer_of(n, a.tensors).dequantize() for n, a in zip(nodes, sources, strict=True))
        torch.testing.assert_close(w12 - w0, (w1 - w0) + (w2 - w0), rtol=0, atol=1e-5)
    assert [s.strength for s in summary] == [0.8, -0.5]
    assert {s.file for s in summary} == {"style.safetensors", "b.safetensors"}
    again, _ = apply(base, tmp_path / "again", (style, 0.8), (second, -0.5), spec=spec)
    assert all(torch.equal(t, again.tensors[name]) for name, t in both.tensors.items())


def test_what_does_not_fit_is_refused_unless_partial(base, spec, tmp_path):
    some = make_factors(spec, every_layer(spec)[:5])
    extra = {"lora_unet_nowhere.lora_down.weight": torch.ones(4, 8), "lora_te1_x.lora_down.weight": torch.ones(4, 8)}
    path = write_kohya(tmp_path / "x.safetensors", some, spec, **extra)
    with pytest.raises(ArtifactError, match="lora_unet_nowhere: no layer of this model"):
        apply(base, tmp_path / "out", (path, 1.0), spec=spec)
    assert not (tmp_path / "out").exists()
    after, (summary,) = apply(base, tmp_path / "out", (path, 1.0), spec=spec, partial=True)
    assert after.meta["loras"] == json.loads(json.dumps([to_json(summary)]))
    (left_out,) = summary.left_out
    assert left_out.name == "lora_unet_nowhere" and left_out.reason.startswith("no layer of this model")
    assert summary.text_encoder_tensors == 1
    assert len(summary.quantized_layers) + len(summary.dense_layers) == 5
    from safetensors.torch import save_file

    save_file(extra, tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="no tensor that can be used, want a LoRA of sdxl-tiny"):
        apply(base, tmp_path / "out", (tmp_path / "none.safetensors", 1.0), spec=spec, partial=True)


def test_more_rank_than_a_node_takes_is_cut_where_nothing_is_lost(base, spec, tmp_path):
    """q, k and v of rank 512 are 1536 ranks, of a delta that has 64 to 256."""
    layers = [n for n in every_layer(spec) if "attn1.to_" in n]
    factors = make_factors(spec, layers, rank=512, size=0.02)
    path = write_peft(tmp_path / "big.safetensors", factors)
    after, (summary,) = apply(base, tmp_path / "out", (path, 1.0), spec=spec)
    before = svdq_file.load(base)
    for old, new in zip(before.nodes, after.nodes, strict=True):
        if old.name.endswith("to_qkv"):
            got = layer_of(new, after.tensors).dequantize() - layer_of(old, before.tensors).dequantize()
            want = torch.cat(
                [factors[m].alpha / 512 * factors[m].up.float() @ factors[m].down.float() for m in old.members]
            )
            assert new.rank <= 16 + 256 and db(want, got) > 50, new.name
    assert all(one.error < 1e-5 for one in summary.cut)


def test_flux(flux_base, tmp_path):
    """Fused q/k/v, columns of proj_out, swapped halves: both spellings give one model, near the merged one."""
    from tests.harness.lora_files import write_flux_original

    spec = get_model("flux1-tiny")
    original, diffusers = write_flux_original(tmp_path, spec)
    requests = [[LoraRequest(p, 0.9)] for p in (original, diffusers)]
    arts = [
        apply_loras(flux_base, r, spec, False, tmp_path / f"{i}.out", lambda *a: None)
        and svdq_file.load(tmp_path / f"{i}.out")
        for i, r in enumerate(requests)
    ]
    before = svdq_file.load(flux_base)
    for nodes in zip(before.nodes, arts[0].nodes, arts[1].nodes, strict=True):
        assert torch.equal(before.tensors[f"{nodes[0].name}.qweight"], arts[0].tensors[f"{nodes[0].name}.qweight"])
        w0, w1, w2 = (layer_of(n, a.tensors).dequantize() for n, a in zip(nodes, (before, *arts), strict=True))
        assert nodes[1].rank == 32, nodes[1].name  # shared down factors take their 8 ranks once
        assert (w1 - w0).norm() > 0.01 * w0.norm(), nodes[0].name
        assert db(w2 - w0, w1 - w0) > 40, nodes[0].name  # bf16 factors, balanced alike
    full, merged = load(spec, random_seed=0), load(spec, random_seed=0)
    merge_into(merged, open_loras(requests[0], spec, layer_shapes(spec), False))
    inputs = [t.float() for t in spec.example_inputs(batch=1, height=64, width=64, seed=5)]
    models = {"full": full, "merged": merged, "base": restore_model(before, spec), "lora": restore_model(arts[0], spec)}
    with torch.inference_mode():
        y = {name: spec.wrap(m.float())(*inputs) for name, m in models.items()}
    quality, reference, change = db(y["merged"], y["lora"]), db(y["full"], y["base"]), db(y["merged"], y["base"])
    assert quality > reference - 3 and quality > change + 7, (quality, reference, change)  # 27.4, 28.5, 17.0
