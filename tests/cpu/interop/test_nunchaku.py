"""A nunchaku file of a whole toy model: both generations of keys, int4 and fp4, by value and bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError, UnsupportedError
from svdq_trt.interop import convert
from svdq_trt.interop.layouts import NEW, OLD
from svdq_trt.interop.nunchaku_export import write_nunchaku
from svdq_trt.interop.packing import FRAGMENTS
from svdq_trt.nn.restore import layer_of, restore_model
from tests.cpu.interop.toy_flux import BLOCK, SPEC, checkpoint

FILES = [
    pytest.param(
        fp4,
        keys,
        old,
        id=f"{'fp4' if fp4 else 'int4'}-{'old' if keys is OLD else 'new'}-keys-{'old' if old else 'new'}-names",
    )
    for fp4 in (False, True)
    for keys in (OLD, NEW)
    for old in (True, False)
]
NODES = {"qkv": "attn.to_qkv", "out": "attn.to_out.0", "fc1": "ff.net.0", "fc2": "ff.net.2", "norm": "norm1.linear"}


def imported(tmp_path, tensors, metadata=None):
    save_file(tensors, tmp_path / "n.safetensors", metadata=metadata)
    convert.import_checkpoint(tmp_path / "n.safetensors", SPEC, tmp_path / "a.safetensors")
    return svdq_file.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("fp4,keys,old", FILES)
def test_import_by_value(tmp_path, fp4, keys, old):
    tensors, metadata, truths = checkpoint(fp4, keys, old)
    loaded = imported(tmp_path, tensors, metadata)
    nodes = {n.name.removeprefix(f"{BLOCK}."): n for n in loaded.nodes}
    assert sorted(nodes) == sorted(NODES.values())
    for key, name in NODES.items():
        layer, truth = layer_of(nodes[name], loaded.tensors), truths[key]
        assert (layer.dequantize().double() - truth.weight).norm() < 0.004 * truth.weight.norm()
        assert torch.equal(layer.bias, truth.bias)
        assert nodes[name].act_unsigned == (name == "ff.net.2" and not fp4)
        assert nodes[name].act_shift == (0.171875 if nodes[name].act_unsigned else 0)
    restore_model(loaded, SPEC)
    assert loaded.meta["format"] == ("nvfp4" if fp4 else "int4") and loaded.meta["rank"] == 16


@pytest.mark.parametrize("fp4,keys,old", FILES)
def test_export_gives_the_file_back(tmp_path, fp4, keys, old):
    """Under the names that nunchaku's loaders of FLUX read, whatever those of the file."""
    tensors, metadata, _ = checkpoint(fp4, keys, old)
    back = write_nunchaku(imported(tmp_path, tensors, metadata), SPEC)
    tensors, _, _ = checkpoint(fp4, OLD, True)
    assert back.metadata == metadata and back.notes == []
    assert sorted(back.tensors) == sorted(tensors)
    for name, t in tensors.items():
        assert t.dtype == back.tensors[name].dtype and t.shape == back.tensors[name].shape, name
        assert torch.equal(t.view(torch.uint8), back.tensors[name].contiguous().view(torch.uint8)), name


def test_older_container(tmp_path):
    """Two files and JSON beside them."""
    tensors, metadata, _ = checkpoint(False, OLD, True)
    blocks = {k: v for k, v in tensors.items() if k.startswith("transformer_blocks")}
    save_file(blocks, tmp_path / "transformer_blocks.safetensors")
    rest = {k: v for k, v in tensors.items() if k not in blocks}
    save_file(rest, tmp_path / "unquantized_layers.safetensors")
    (tmp_path / "config.json").write_text(metadata["config"])
    convert.import_checkpoint(tmp_path, SPEC, tmp_path / "a.safetensors")
    one = imported(tmp_path, tensors, metadata)
    two = svdq_file.load(tmp_path / "a.safetensors")
    assert all(torch.equal(one.tensors[n].view(torch.uint8), two.tensors[n].view(torch.uint8)) for n in one.tensors)
    (tmp_path / "unquantized_layers.safetensors").unlink()
    with pytest.raises(ArtifactError, match="both files"):
        convert.import_checkpoint(tmp_path, SPEC, tmp_path / "b.safetensors")


def test_layer_in_16_bit_stays_so(tmp_path):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    for name in [n for n in tensors if ".out_proj." in n]:
        del tensors[name]
    tensors[f"{BLOCK}.out_proj.weight"] = torch.randn(64, 64).bfloat16()
    tensors[f"{BLOCK}.out_proj.bias"] = torch.randn(64).bfloat16()
    loaded = imported(tmp_path, tensors, metadata)
    assert len(loaded.nodes) == 4
    assert torch.equal(loaded.tensors[f"{BLOCK}.attn.to_out.0.weight"], tensors[f"{BLOCK}.out_proj.weight"])
    restore_model(loaded, SPEC)
    with pytest.raises(UnsupportedError, match=r"to_out\.0'.*4 bit"):
        write_nunchaku(loaded, SPEC)


def test_layer_that_the_model_keeps_is_dequantized(tmp_path, monkeypatch):
    tensors, metadata, truths = checkpoint(False, OLD, True)
    recipe = SPEC.recipe
    monkeypatch.setattr(type(SPEC), "recipe", lambda self, module, skip=(): recipe(module, ("*.attn.to_out.0",)))
    loaded = imported(tmp_path, tensors, metadata)
    got = loaded.tensors[f"{BLOCK}.attn.to_out.0.weight"].double()
    assert (got - truths["out"].weight).norm() < 0.005 * got.norm()
    fc2 = f"{BLOCK}.ff.net.2"
    monkeypatch.setattr(type(SPEC), "recipe", lambda self, module, skip=(): recipe(module, (fc2,)))
    loaded = imported(tmp_path, tensors, metadata)  # its input is shifted at nunchaku: the bias takes that back
    residual = truths["fc2"].weight - low_rank(tensors, f"{BLOCK}.mlp_fc2")
    want = truths["fc2"].bias.double() + 0.171875 * residual.sum(1)
    assert torch.allclose(loaded.tensors[f"{fc2}.bias"].double(), want, rtol=0.01, atol=0.01)


def low_rank(tensors, name):
    up, down = tensors[f"{name}.lora_up"], tensors[f"{name}.lora_down"]
    logical = FRAGMENTS.up.unpack(up, up.shape), FRAGMENTS.down.unpack(down, down.shape[::-1])
    return logical[0][:64].double() @ logical[1].double()


def edit_config(metadata, key, **changes):
    return metadata | {key: json.dumps(json.loads(metadata[key]) | changes)}


@pytest.mark.parametrize(
    "kind,text,key,changes",
    [
        (ArtifactError, "channels is 9", "config", {"channels": 9}),
        (ArtifactError, "_class_name", "config", {"_class_name": "SanaTransformer2DModel"}),
        (ArtifactError, "method is 'gptq'", "quantization_config", {"method": "gptq"}),
        (ArtifactError, "weight.dtype is 'fp4", "quantization_config", {"weight": {"dtype": "fp4_e2m1_all"}}),
        (ArtifactError, "group_size is 16", "quantization_config", {"weight": {"group_size": 16}}),
        (ArtifactError, "rank is 32", "quantization_config", {"rank": 32}),
    ],
)
def test_header_that_contradicts_is_refused(tmp_path, kind, text, key, changes):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    with pytest.raises(kind, match=text):
        imported(tmp_path, tensors, edit_config(metadata, key, **changes))


@pytest.mark.parametrize("name", ["NunchakuFluxTransformer2dModel", "NunchakuFluxTransformer2DModelV2"])
def test_either_loader_of_flux_may_be_named(tmp_path, name):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    metadata = edit_config(metadata, "config", _class_name=name) | {"model_class": name}
    assert imported(tmp_path, tensors, metadata).nodes


def test_a_file_for_another_of_nunchakus_models_is_refused(tmp_path):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    with pytest.raises(ArtifactError, match=r"model_class': 'NunchakuSanaTransformer2DModel', want NunchakuFlux"):
        imported(tmp_path, tensors, metadata | {"model_class": "NunchakuSanaTransformer2DModel"})


@pytest.mark.parametrize("value", ["{", "[]", "3", '"x"', "null", "[" * 100_000, "\ud7ff" * 3])
@pytest.mark.parametrize("key", ["config", "quantization_config"])
def test_header_that_is_no_object_is_refused(tmp_path, key, value):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    with pytest.raises(ArtifactError, match=f"metadata '{key}'"):
        imported(tmp_path, tensors, metadata | {key: value})


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        '{"layers": 3}',
        '{"layers": {"transformer_blocks.0.qkv_proj": []}}',
        '{"layers": {"transformer_blocks.0.mlp_fc2": {"signed": true, "bias": "AAAA"}}}',
    ],
)
def test_own_key_with_nonsense_does_no_harm(tmp_path, value):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    restore_model(imported(tmp_path, tensors, metadata | {"svdq_trt": value}), SPEC)


def test_missing_extra_and_doubled_layers_are_refused(tmp_path):
    tensors, metadata, _ = checkpoint(False, OLD, True)
    with pytest.raises(ShapeError, match="no place for"):
        imported(tmp_path, tensors | {"lora.up": torch.zeros(2)}, metadata)
    with pytest.raises(SvdqError, match=r"to_q\.bias|to_qkv"):
        imported(tmp_path, {k: v for k, v in tensors.items() if "qkv_proj" not in k}, metadata)
    doubled = {k.replace("qkv_proj", "attn.to_qkv"): v.clone() for k, v in tensors.items() if "qkv_proj" in k}
    with pytest.raises(ArtifactError, match="both"):
        imported(tmp_path, tensors | doubled, metadata)


def test_other_files_are_told_apart(tmp_path):
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ArtifactError, match="known quantized format"):
        convert.import_checkpoint(tmp_path / "plain.safetensors", SPEC, tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match="does not exist"):
        convert.import_checkpoint(tmp_path / "none.safetensors", SPEC, tmp_path / "a.safetensors")
    tensors, metadata, _ = checkpoint(False, OLD, True)
    imported(tmp_path, tensors, metadata)
    with pytest.raises(ArtifactError, match="our own artifact"):
        convert.import_checkpoint(tmp_path / "a.safetensors", SPEC, tmp_path / "b.safetensors")
    assert convert.describe(tmp_path / "a.safetensors", SPEC).format == "int4"
    assert load_file(tmp_path / "a.safetensors")
