"""Whatever is wrong with a checkpoint is reported in one line; nothing crashes."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError
from svdq_trt.checkpoint import load
from svdq_trt.models import get_model

SPEC = get_model("sdxl-tiny")
STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def state():
    return dict(load(SPEC, random_seed=7).state_dict())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def refuse(checkpoint, kind, text):
    with pytest.raises(kind, match=text) as caught:
        load(SPEC, checkpoint=str(checkpoint))
    assert isinstance(caught.value, SvdqError)
    assert "\n" not in str(caught.value)


def header(entries, data=b""):
    body = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(body)) + body + data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"abc", id="shorter-than-a-length"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="header-bomb"),
        pytest.param(struct.pack("<Q", 99_000_000) + b"{}", id="header-longer-than-file"),
        pytest.param(header(b"not json"), id="header-not-json"),
        pytest.param(header(b"[" * 5000), id="header-nested"),
        pytest.param(header({"a": {"dtype": "F16", "shape": [8], "data_offsets": [0, 16]}}), id="data-missing"),
        pytest.param(header({"a": {"dtype": "F16", "shape": [8], "data_offsets": [8, 0]}}, b"0" * 16), id="backwards"),
        pytest.param(header({"a": {"dtype": "F16", "shape": [9], "data_offsets": [0, 16]}}, b"0" * 16), id="size"),
        pytest.param(header({"a": {"dtype": "F16", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}), id="overflow"),
        pytest.param(header({"a": {"dtype": "X7", "shape": [8], "data_offsets": [0, 16]}}, b"0" * 16), id="dtype"),
    ],
)
def test_malformed_safetensors(path, content):
    path.write_bytes(content)
    refuse(path, ArtifactError, "not a readable safetensors file")


def test_truncated_safetensors(path, state):
    save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse(path, ArtifactError, "not a readable safetensors file")


def test_missing_tensor(path, state):
    save_file({n: t for n, t in state.items() if n != "conv_in.bias"}, path)
    refuse(path, ShapeError, r"1 missing of \d+ tensors \(conv_in.bias\)")


def test_extra_tensor(path, state):
    save_file(state | {"lora.up": torch.zeros(2)}, path)
    refuse(path, ShapeError, r"1 unknown of \d+ tensors \(lora.up\)")


def test_wrong_shape(path, state):
    save_file(state | {"conv_in.bias": torch.zeros(3)}, path)
    refuse(path, ShapeError, r"'conv_in.bias': shape \[3\], want \[64\]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf(path, state, value):
    bad = state["conv_in.weight"].clone()
    bad[1, 2, 0, 1] = value
    save_file(state | {"conv_in.weight": bad}, path)
    refuse(path, ArtifactError, "'conv_in.weight': NaN or Inf")


def test_overflow_of_the_act_dtype(path, state):
    save_file(state | {"conv_in.bias": torch.full((64,), 1e6)}, path)
    refuse(path, ArtifactError, "'conv_in.bias': NaN or Inf, want finite values that fit float16")


def test_quantized_weights(path, state):
    save_file(state | {"conv_in.bias": torch.zeros(64, dtype=torch.int8)}, path)
    refuse(path, ArtifactError, "'conv_in.bias': dtype I8, want floats. Use an unquantized")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickle_file_is_refused_unread(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the pickle was run')",))

    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    refuse(path, ArtifactError, "a pickle file, which can run code when read")


def folder(path, **changes):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**SPEC.config, **changes}))
    return path


def test_folder_with_pickle_only_is_refused(tmp_path):
    (folder(tmp_path) / f"{STEM}.bin").write_bytes(b"x")
    refuse(tmp_path, ArtifactError, "only pickle files here")


def test_folder_without_config_or_weights(tmp_path):
    refuse(tmp_path, ArtifactError, "no config.json")
    refuse(folder(tmp_path), ArtifactError, "no weights")


@pytest.mark.parametrize(
    "changes,text",
    [
        ({"cross_attention_dim": 768}, "cross_attention_dim is 768, want 128"),
        ({"block_out_channels": [64, 128, 128]}, r"block_out_channels is \[64, 128, 128\]"),
        ({"time_embedding_dim": 99}, "time_embedding_dim is 99, want None"),
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name is 'FluxTransformer2DModel'"),
    ],
)
def test_config_mismatch_names_the_key(tmp_path, state, changes, text):
    save_file(state, folder(tmp_path, **changes) / f"{STEM}.safetensors")
    refuse(tmp_path, ArtifactError, text)


def test_config_spelled_otherwise_is_accepted(tmp_path, state):
    spelled = {
        "sample_size": 64,
        "upcast_attention": False,
        "cross_attention_dim": [128, 128, 128],
        "decay": 0.9,
    }
    save_file(state, folder(tmp_path, **spelled) / f"{STEM}.safetensors")
    load(SPEC, checkpoint=str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_config_that_is_no_object(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / f"{STEM}.safetensors").write_bytes(b"")
    refuse(tmp_path, ArtifactError, r"config\.json")


@pytest.mark.parametrize(
    "index,text",
    [
        ({}, "no usable 'weight_map'"),
        ({"weight_map": {}}, "no usable 'weight_map'"),
        ({"weight_map": {"a": 3}}, "no usable 'weight_map'"),
        ({"weight_map": ["a"]}, "no usable 'weight_map'"),
        ({"weight_map": {"a": "../../x.safetensors"}}, "file name '../../x.safetensors'"),
        ({"weight_map": {"a": "x.bin"}}, "file name 'x.bin'"),
        ({"weight_map": {"a": "none.safetensors"}}, "missing shard"),
    ],
)
def test_malformed_index(tmp_path, index, text):
    (folder(tmp_path) / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    refuse(tmp_path, ArtifactError, text)


def test_index_that_disagrees_with_the_shards(tmp_path, state):
    folder(tmp_path)
    names = sorted(state)
    save_file({n: state[n] for n in names[:9]}, tmp_path / "a.safetensors")
    save_file({n: state[n] for n in names[9:]}, tmp_path / "b.safetensors")
    index = dict.fromkeys(names[:10], "a.safetensors") | dict.fromkeys(names[10:], "b.safetensors")
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    refuse(tmp_path, ArtifactError, rf"'{names[9]}' is not in a\.safetensors")


def test_same_tensor_in_two_shards(tmp_path, state):
    folder(tmp_path)
    save_file(state, tmp_path / "a.safetensors")
    save_file({"conv_in.bias": state["conv_in.bias"]}, tmp_path / "b.safetensors")
    index = dict.fromkeys(state, "a.safetensors") | {"conv_in.bias": "b.safetensors"}
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    refuse(tmp_path, ArtifactError, "'conv_in.bias' again")


@pytest.mark.parametrize("text", ["/no/such/folder", "./none", "none.safetensors", "not a hub id"])
def test_path_that_does_not_exist_names_both_options(text):
    refuse(text, ArtifactError, "does not exist.*--checkpoint.*--random-weights")


def test_other_file_types(tmp_path):
    (tmp_path / "w.gguf").write_bytes(b"x")
    refuse(tmp_path / "w.gguf", ArtifactError, r"suffix '\.gguf'")
