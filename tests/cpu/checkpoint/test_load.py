"""Every accepted form of a checkpoint gives the same module."""

import itertools
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.checkpoint import identify_weights, load, open_weights
from svdq_trt.models import get_model

SPEC = get_model("sdxl-tiny")
STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def state():
    return dict(load(SPEC, random_seed=7).state_dict())


def config(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    body = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0", **SPEC.config, **changes}
    (folder / "config.json").write_text(json.dumps(body))
    return folder


def assert_loads(checkpoint, state):
    module = load(SPEC, checkpoint=str(checkpoint))
    assert not module.training
    got = module.state_dict()
    assert set(got) == set(state)
    for name, tensor in got.items():
        assert tensor.dtype == torch.float16 and tensor.device.type == "cpu", name
        assert tensor.equal(state[name]), name


def shard(folder, state, variant=""):
    names = sorted(state)
    index = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{STEM}{variant}-0000{i}-of-00002.safetensors"
        save_file({n: state[n] for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{STEM}.safetensors.index{variant}.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_pipeline_folder_with_fp16_variant(tmp_path, state):
    save_file(state, config(tmp_path / "unet") / f"{STEM}.fp16.safetensors")
    assert_loads(tmp_path, state)


def marked(state, value):
    """Other weights: one number tells whose."""
    return state | {"conv_in.bias": torch.full_like(state["conv_in.bias"], value)}


FORMS = {
    "plain": lambda folder, state: save_file(state, folder / f"{STEM}.safetensors"),
    "fp16": lambda folder, state: save_file(state, folder / f"{STEM}.fp16.safetensors"),
    "shards": lambda folder, state: shard(folder, state),
    "fp16 shards": lambda folder, state: shard(folder, state, ".fp16"),
}


@pytest.mark.parametrize("forms", [f for n in (1, 2, 3, 4) for f in itertools.combinations(FORMS, n)], ids="+".join)
def test_of_several_files_the_one_that_diffusers_reads_is_read(tmp_path, state, forms):
    """diffusers' own loader is asked; a variant is asked for only where there is nothing else."""
    folder = config(tmp_path / "unet")
    for form in forms:
        FORMS[form](folder, marked(state, 1.0 + list(FORMS).index(form)))
    variant = None if {"plain", "shards"} & set(forms) else "fp16"
    asked = {"subfolder": "unet", "variant": variant, "torch_dtype": torch.float16, "low_cpu_mem_usage": False}
    want = SPEC.model_class().from_pretrained(tmp_path, **asked).state_dict()["conv_in.bias"]
    weights = open_weights(SPEC, str(tmp_path))
    assert torch.equal(weights.read("conv_in.bias"), want)
    identity = identify_weights(SPEC, str(tmp_path))
    assert all("-0000" in f.file for f in identity.files) == (len(identity.files) == 2)
    (note,) = identity.notes or ("",)
    assert note.count("diffusion_pytorch_model") == (len(forms) if len(forms) > 1 else 0), note


def test_a_hub_snapshot_is_read_by_the_variant_that_was_downloaded(monkeypatch, tmp_path, state):
    unet = config(tmp_path / "unet")
    save_file(marked(state, 2.0), unet / f"{STEM}.fp16.safetensors")
    (unet / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": f"{STEM}-1.safetensors"}}))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert open_weights(SPEC, "me/mine").read("conv_in.bias")[0] == 2
    with pytest.raises(ArtifactError, match=rf"missing shard.*Or remove .*so that .*: {STEM}.fp16.safetensors\."):
        open_weights(SPEC, str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_model_folder_of_another_dtype_is_converted(tmp_path, state, dtype):
    exact = {n: t.to(torch.bfloat16).to(torch.float16) for n, t in state.items()}  # exact in all of them
    save_file({n: t.to(dtype) for n, t in exact.items()}, config(tmp_path) / f"{STEM}.safetensors")
    if dtype is torch.bfloat16:  # f16's smallest values leave bf16 exact, but f16 subnormals are rounded on the way
        exact = {n: t.to(dtype).to(torch.float16) for n, t in exact.items()}
    assert_loads(tmp_path, exact)


def test_sharded_folder(tmp_path, state):
    shard(config(tmp_path), state)
    assert_loads(tmp_path, state)


def test_single_file(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    assert_loads(tmp_path / "model.safetensors", state)


def ldm_name(name):
    """The original name of a diffusers tensor, for three levels of one resnet each."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    owner, leaf = name.rsplit(".", 1)
    if owner in fixed:
        return f"{fixed[owner]}.{leaf}"
    if m := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv", name):
        return f"input_blocks.{2 * int(m[1]) + 2}.0.op.{leaf}"
    if m := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv", name):
        return f"output_blocks.{2 * int(m[1]) + 1}.{2 if m[1] != '2' else 1}.conv.{leaf}"
    m = re.match(r"(down_blocks\.\d|up_blocks\.\d|mid_block)\.(resnets|attentions)\.(\d)\.(.*)", name)
    block, kind, i, rest = m[1], m[2], int(m[3]), m[4]
    at = 0 if kind == "resnets" else 1
    if block == "mid_block":
        prefix = f"middle_block.{2 * i + at}"
    elif block.startswith("down"):
        prefix = f"input_blocks.{2 * int(block[-1]) + 1 + i}.{at}"
    else:
        prefix = f"output_blocks.{2 * int(block[-1]) + i}.{at}"
    for new, old in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        if kind == "resnets":
            rest = rest.replace(new, old)
    return f"{prefix}.{rest}"


def original(state):
    return {f"model.diffusion_model.{ldm_name(n)}": t for n, t in state.items()}


def test_original_single_file_names(tmp_path, state):
    other_parts = {
        "first_stage_model.decoder.conv_in.weight": torch.zeros(4),
        "conditioner.x": torch.zeros(4),
    }
    save_file(original(state) | other_parts, tmp_path / "sd.safetensors")
    assert_loads(tmp_path / "sd.safetensors", state)


def test_original_names_of_another_model_are_refused(tmp_path, state):
    foreign = {k: v for k, v in original(state).items() if "label_emb" not in k}
    save_file(foreign, tmp_path / "sd15.safetensors")
    with pytest.raises(ArtifactError, match="original-format keys that don't convert"):
        load(SPEC, checkpoint=str(tmp_path / "sd15.safetensors"))


def test_neither_option_names_both():
    with pytest.raises(UsageError, match="--checkpoint PATH or --random-weights SEED"):
        load(SPEC)


def test_both_options_are_refused():
    with pytest.raises(UsageError, match="given together with --random-weights"):
        load(SPEC, checkpoint="x", random_seed=1)


@pytest.mark.parametrize("checkpoint", [None, "someone/some-model"])
def test_unreachable_hub_names_both_options(monkeypatch, checkpoint):
    def offline(*args, **kwargs):
        raise OSError("no network\nand a long trace")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ArtifactError) as caught:
        load(get_model("sdxl"), checkpoint=checkpoint)
    text = str(caught.value)
    assert "--checkpoint" in text and "--random-weights" in text and "\n" not in text
    assert (checkpoint or "stabilityai/stable-diffusion-xl-base-1.0") in text


def test_hub_cache_is_used_before_the_network(monkeypatch, tmp_path, state):
    save_file(state, config(tmp_path / "unet") / f"{STEM}.fp16.safetensors")
    calls = []

    def cached(hub_id, *, allow_patterns, local_files_only=False):
        calls.append((hub_id, local_files_only))
        assert "unet/config.json" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert_loads("me/mine", state)
    assert calls == [("me/mine", True)]
    (note,) = identify_weights(SPEC, "me/mine").notes
    assert note.startswith("me/mine: weights from the local cache, ")  # diffusers would ask the hub for newer ones


def test_the_commit_of_a_hub_snapshot_is_known(monkeypatch, tmp_path, state):
    folder = tmp_path / "models--me--mine" / "snapshots" / "0123abc"
    save_file(state, config(folder / "unet") / f"{STEM}.fp16.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    identity = identify_weights(SPEC, "me/mine")
    assert identity.commit == "0123abc" and "commit 0123abc; the hub was not asked" in identity.notes[0]


def test_hub_without_the_fp16_variant_takes_the_plain_files(monkeypatch, tmp_path, state):
    unet = config(tmp_path / "unet")
    calls = []

    def download(hub_id, *, allow_patterns, local_files_only=False):
        calls.append(local_files_only)
        if f"unet/{STEM}*.safetensors" in allow_patterns:
            save_file(state, unet / f"{STEM}.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert_loads("me/mine", state)
    assert calls == [True, False, False]


def test_digest_follows_content_and_not_place(tmp_path, state):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(state, a)
    b.write_bytes(a.read_bytes())
    digest = identify_weights(SPEC, checkpoint=str(a)).digest
    assert digest.startswith("sha256:") and digest == identify_weights(SPEC, checkpoint=str(b)).digest
    body = bytearray(a.read_bytes())
    body[-1000] ^= 1
    b.write_bytes(body)
    assert digest != identify_weights(SPEC, checkpoint=str(b)).digest


def test_digest_of_random_weights_follows_seed_and_model():
    digests = {identify_weights(SPEC, random_seed=s).digest for s in (1, 2)} | {
        identify_weights(get_model("sdxl"), random_seed=1).digest
    }
    assert len(digests) == 3
    assert identify_weights(SPEC, random_seed=1).digest in digests
