"""Language models as models to quantize: they compute what the same part of a pipeline does in 16 bit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError, UsageError
from svdq_trt.build.config import BuildConfig, Range, RankAuto
from svdq_trt.build.work import plan_work, require_memory_for_check
from svdq_trt.checkpoint import load
from svdq_trt.checkpoint.parts import load_part
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.language_model import LanguageModel
from tests.harness import tiny_pipelines
from tests.harness.language_models import LANGUAGE_MODELS, QWEN2_5_VL, QWEN3, WIDE
from tests.harness.part_graphs import ids, part, saved

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
CASES = LANGUAGE_MODELS | {
    "causal": ("Qwen3ForCausalLM", QWEN3),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
}


def model_of(one):
    return get_model(LanguageModel("text", one).to_text())


@torch.no_grad()
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("states", [(-2,), (-1,), (1, 2)])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_its_part_does(name, states, renamed, tmp_path):
    """Of the published files, which have former names, and of those with the names of today's module."""
    class_name, config = CASES[name]
    whole = saved(class_name, config, tmp_path)
    if renamed:
        save_file(whole.state_dict(), tmp_path / "text_encoder" / "model.safetensors")
    one = replace(part(class_name, config, dtype="bfloat16"), states=states)
    spec, text = model_of(one), ids(3, 12)
    ours = spec.wrap(load(spec, str(tmp_path / "text_encoder")))
    theirs = one.wrap(load_part(one, tmp_path, "", None))
    mask = (text != 59).long()
    assert ours(text, mask).shape == (len(states), 3, 12, 32)
    assert torch.equal(ours(text, mask), theirs(text, mask))


def test_angles_of_rotations_stay_in_f32():
    """As transformers keeps them in 16 bit: in bf16 the hundredth token would stand elsewhere."""
    one = part("Qwen3Model", QWEN3, dtype="bfloat16")
    exact = part("Qwen3Model", QWEN3).build().rotary_emb.inv_freq
    for module in (one.build(), load(model_of(one), random_seed=0)):
        assert module.embed_tokens.weight.dtype == torch.bfloat16
        assert torch.equal(module.rotary_emb.inv_freq, exact)


def test_every_linear_of_every_layer_is_quantized():
    spec = model_of(replace(part("Qwen3ForCausalLM", WIDE, dtype="bfloat16"), states=(2,)))
    recipe = spec.recipe(spec.build())
    nodes = [(g.node, len(g.members), g.activation.value) for g in recipe.groups]
    names = [("self_attn.qkv_proj", 3, ""), ("self_attn.o_proj", 1, ""), ("mlp.up_gate_proj", 2, "Swiglu")]
    names.append(("mlp.down_proj", 1, ""))
    assert nodes == [(f"layers.{i}.{name}", *rest) for i in range(2) for name, *rest in names]
    assert not recipe.kept


def test_of_a_file_only_what_is_behind_the_states_is_left_out(tmp_path):
    saved("Qwen3Model", WIDE, tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    spec = model_of(replace(part("Qwen3Model", WIDE), act_dtype="bfloat16", states=(1,)))
    angles = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # of transformers' files from 2023
    save_file(tensors | angles, file)
    assert {name.split(".")[1] for name, _ in load(spec, str(file.parent)).layers.named_parameters(prefix="l")} == {"0"}
    save_file(tensors | {"layers.0.mlp.up_proj.bias": torch.ones(128)}, file)
    with pytest.raises(ShapeError, match=r"1 unknown of \d+ tensors \(layers\.0\.mlp\.up_proj\.bias\)"):
        load(spec, str(file.parent))
    save_file({name: value for name, value in tensors.items() if "layers.0.mlp.up" not in name}, file)
    with pytest.raises(ShapeError, match=r"1 missing of \d+ tensors \(layers\.0\.mlp\.up_proj\.weight\)"):
        load(spec, str(file.parent))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"class_name": "CLIPTextModel"}, "a CLIPTextModel"),
        ({"class_name": "AutoencoderKL"}, "a AutoencoderKL"),
        ({"class_name": "os"}, "a os"),
        ({"states": [9]}, "3 layers, where the state after 9 is read"),
        ({"config": {"head_dim": "x"}}, ".*"),
    ],
)
def test_a_description_from_outside_is_not_trusted(changed, said):
    data = json.loads(LanguageModel("text", part("Qwen3Model", QWEN3, dtype="bfloat16")).to_text())
    data["language_model"]["part"] |= changed
    with pytest.raises(ArtifactError, match=f"the model's description: {said}, want one that a build wrote"):
        get_model(json.dumps(data))
    with pytest.raises(ArtifactError, match="the model's description"):
        get_model('{"language_model": 1}')


@pytest.fixture
def folder(tmp_path):
    tiny_pipelines.save(
        "ZImagePipeline", get_model("z-image-tiny"), tiny_pipelines.z_image_parts(tmp_path), out := tmp_path / "z"
    )
    return out


def plan(folder, **options):
    options = {"random_weights": 0, "quantize_text": True} | options
    config = BuildConfig("z-image-tiny", (89,), folder / "out", check=False, pipeline=folder, **options)
    return plan_work(config).pipeline


def test_it_is_a_build_of_its_own(folder):
    found = plan(folder, rank=64, format="w4a8", fuse_mlp=False)
    (config,) = found.quantized.values()
    assert (*found.quantized, config.rank, config.format) == ("text_encoder", 64, "w4a8")
    assert not config.check and not config.fuse_mlp
    work = plan_work(config)
    assert work.engines[0].folder.name == "z-image-tiny-text_encoder-sm_89"
    assert (work.config.batch, work.config.tokens) == (Range(1, 1, 1), Range(96, 96, 96))
    assert sorted(one.part.name for one in found.parts) == ["vae_decoder", "vae_encoder"]


def test_a_budget_of_ranks_is_the_denoisers_alone(folder):
    budget = RankAuto.parse("auto", "1MB", None, None)
    (config,) = plan(folder, **dict(zip(("rank", "rank_auto"), budget, strict=True))).quantized.values()
    assert (config.rank, config.rank_auto) == (32, None)


def test_its_weights_are_found_where_a_part_finds_them(folder, monkeypatch):
    """Of the denoiser's variant, where that alone is there, as of SANA's pipelines."""
    tiny = get_model("z-image-tiny")
    monkeypatch.setitem(MODELS, tiny.name, replace(tiny, variant="bf16"))
    root = folder / "text_encoder"
    (root / "model.safetensors").rename(root / "model.bf16.safetensors")
    weights = {"random_weights": None, "checkpoint": str(folder)}
    (config,) = plan(folder, **weights).quantized.values()
    encoder, *_ = plan(folder, **weights, quantize_text=False).parts
    assert plan_work(config).identity.files == encoder.identity.files
    load(get_model(config.model), config.checkpoint)


def test_a_library_that_is_missing_is_not_the_descriptions_fault(monkeypatch):
    text = LanguageModel("text", part("Qwen3Model", QWEN3, dtype="bfloat16"), "of this test").to_text()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"no transformers\.Qwen3Model"):
        get_model(text)


def test_what_is_quantized_already_is_refused_before_any_work(folder):
    path = folder / "text_encoder" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    with pytest.raises(UnsupportedError, match=r"config\.json: .*quantiz"):
        plan(folder)


def test_layers_that_4_bits_do_not_fit_are_refused_before_any_work(folder):
    path = folder / "text_encoder" / "config.json"
    narrow = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    path.write_text(json.dumps(json.loads(path.read_text()) | narrow))
    with pytest.raises(UnsupportedError, match=r"config\.json: no linear for 4 bits: of layers\.0\..*, K = 96 is not"):
        plan(folder)


def test_too_large_a_model_for_the_check_has_no_twin_to_name():
    spec = model_of(part("Qwen3Model", QWEN3, dtype="bfloat16"))
    with pytest.raises(UsageError, match=r"--check: text in 16 bit takes .* want that much memory, or --no-check\.?$"):
        require_memory_for_check(spec, 1)
