"""Single files: original names of every family that has a conversion, prefixes that tools leave, other kinds."""

import dataclasses
import json

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError
from svdq_trt.checkpoint import load, open_weights
from svdq_trt.checkpoint.names import find_tensors
from svdq_trt.models import get_model
from tests.harness import original_names
from tests.harness.original_names import PREFIX
from tests.harness.published import own_module

SDXL = get_model("sdxl-tiny")
#: at FLUX.1's width, which diffusers' conversion takes for granted
FLUX = dataclasses.replace(
    get_model("flux1-dev"), config={**get_model("flux1-dev").config, "num_layers": 2, "num_single_layers": 2}
)
ORIGINALS = {
    "flux": (FLUX, original_names.flux),
    "sd3": (get_model("sd3-tiny"), original_names.sd3),
    "sana": (get_model("sana-tiny"), original_names.sana),
}


def narrow(spec):
    """A state dict of diffusers' module with all rows and one column of its tensors."""
    with torch.device("meta"):
        module = spec.model_class()(**spec.config)
    rng = torch.Generator().manual_seed(0)
    return {n: torch.randn(t.shape[0], *[1] * (t.ndim - 1), generator=rng) for n, t in module.state_dict().items()}


@pytest.mark.parametrize("family", ORIGINALS)
def test_rows_are_where_diffusers_conversion_takes_them_from(family):
    spec, rename = ORIGINALS[family]
    state = narrow(spec)
    file = rename(state)
    convert = SINGLE_FILE_LOADABLE_CLASSES[spec.model_class().__name__]["checkpoint_mapping_fn"]
    want = convert(dict(file), config=dict(spec.config))
    assert want.keys() == state.keys() and all(t.equal(state[n]) for n, t in want.items())  # our harness is right
    for prefix in ("", PREFIX, f"module.{PREFIX}", "_orig_mod."):
        shapes = {prefix + n: tuple(t.shape) for n, t in file.items()}
        found = find_tensors(spec, state, shapes, "f")
        assert found.original and found.rows.keys() == want.keys()
        for name, rows in found.rows.items():
            parts = [file[r.name.removeprefix(prefix)][r.start : r.stop] for r in rows]
            assert torch.cat(parts).equal(want[name]), name


@pytest.mark.parametrize("family", ["sd3", "sana"])
def test_original_file_loads_as_the_folder_that_diffusers_writes(tmp_path, family):
    """Among the text encoders and the VAE of an all-in-one file."""
    spec, rename = ORIGINALS[family]
    module = own_module(spec, 5).to(spec.torch_dtype)
    state = {n: t.to(spec.torch_dtype).contiguous() for n, t in module.state_dict().items()}
    beside = {"vae.decoder.conv_in.weight": torch.zeros(2), "text_encoders.clip_l.logit_scale": torch.tensor(1.0)}
    save_file({PREFIX + n: t for n, t in rename(state).items()} | beside, tmp_path / "one.safetensors")
    save_file(state, tmp_path / "plain.safetensors")
    want = load(spec, str(tmp_path / "plain.safetensors")).state_dict()
    got = load(spec, str(tmp_path / "one.safetensors")).state_dict()
    assert got.keys() == want.keys() and all(t.equal(want[n]) for n, t in got.items())


def test_flux_file_in_fp8_is_opened_without_being_read(tmp_path):
    """ComfyUI's all-in-one file has fp8 without scales; here 1.3 GB of nothing but one bias, in no space on disk."""
    with torch.device("meta"):
        module = FLUX.model_class()(**FLUX.config)
    state = {n: torch.empty(t.shape, dtype=torch.float8_e4m3fn, device="meta") for n, t in module.state_dict().items()}
    header, end = {}, 0
    for name, tensor in original_names.flux(state).items():
        header[PREFIX + name] = {
            "dtype": "F8_E4M3",
            "shape": [*tensor.shape],
            "data_offsets": [end, end + tensor.numel()],
        }
        end += tensor.numel()
    text = json.dumps(header).encode()
    bias = torch.randn(3 * 3072 + 12288, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    path = tmp_path / "flux1-dev-fp8.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.seek(start + header[f"{PREFIX}single_blocks.1.linear1.bias"]["data_offsets"][0])
        file.write(bias.view(torch.uint8).numpy().tobytes())
        file.truncate(start + end)
    weights = open_weights(FLUX, str(path))
    parts = [
        f"single_transformer_blocks.1.{layer}.bias" for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert torch.cat([weights.read(name) for name in parts]).equal(bias.bfloat16())


@pytest.mark.parametrize("prefix", ["", "unet.", "module.", "_orig_mod.", "module._orig_mod.", PREFIX, "model."])
def test_prefixes_that_tools_leave(prefix):
    own = {n: tuple(t.shape) for n, t in SDXL.build().state_dict().items()}
    beside = {"vae.encoder.conv_in.weight": (2,)} if prefix else {}
    found = find_tensors(SDXL, own, {prefix + n: shape for n, shape in own.items()} | beside, "f")
    assert {n: rows[0].name for n, rows in found.rows.items()} == {n: prefix + n for n in own}


def test_file_with_a_prefix_loads(tmp_path):
    state = load(SDXL, random_seed=7).state_dict()
    save_file({f"module._orig_mod.{n}": t for n, t in state.items()}, tmp_path / "m.safetensors")
    got = load(SDXL, str(tmp_path / "m.safetensors")).state_dict()
    assert all(t.equal(state[n]) for n, t in got.items())


def test_two_models_in_one_file_are_refused(tmp_path):
    two = {f"{p}.conv_in.weight": torch.zeros(2) for p in ("unet", "module")}
    save_file(two, tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match=r"models under 'module\.' and 'unet\.', want one model in a file"):
        load(SDXL, str(tmp_path / "m.safetensors"))


W = "transformer_blocks.0.attn.to_q"
OTHER = {
    "nunchaku": ({f"{W}.qweight": (8, 4), f"{W}.wscales": (1, 8)}, UnsupportedError, "weights in 4 bits.*--quantized"),
    "a LoRA of PEFT": ({f"transformer.{W}.lora_A.weight": (4, 8)}, UnsupportedError, "a LoRA.*--lora"),
    "a LoRA of kohya": ({"lora_unet_a_to_q.lora_up.weight": (4, 8)}, UnsupportedError, "a LoRA.*--lora"),
    "scaled fp8": ({f"{W}.weight": (8, 8), f"{W}.scale_weight": (1,)}, UnsupportedError, "fp8 weights with scales"),
    "bitsandbytes": ({f"{W}.weight": (8, 1), f"{W}.weight.absmax": (1,)}, UnsupportedError, "bitsandbytes quantized"),
    "Z-Image": ({"layers.0.adaLN_modulation.0.weight": (8, 8)}, UnsupportedError, "diffusers takes for z-image-turbo"),
    "nothing known": ({"a.weight": (2,)}, ShapeError, r"\d+ missing of \d+ tensors"),
}


@pytest.mark.parametrize("case", OTHER)
def test_file_of_another_kind_is_named(tmp_path, case):
    tensors, kind, text = OTHER[case]
    save_file({n: torch.zeros(shape) for n, shape in tensors.items()}, tmp_path / "m.safetensors")
    with pytest.raises(kind, match=text):
        load(SDXL, str(tmp_path / "m.safetensors"))


def test_original_names_without_a_conversion_are_named(tmp_path):
    save_file({"blocks.0.cross_attn.q_linear.weight": torch.zeros(2, 2)}, tmp_path / "pixart.safetensors")
    with pytest.raises(UnsupportedError, match=r"the original names of PixArt's structure.*want diffusers' names"):
        load(get_model("pixart-tiny"), str(tmp_path / "pixart.safetensors"))


def test_tensor_that_the_conversion_leaves_is_not_dropped(tmp_path):
    spec, rename = ORIGINALS["sd3"]
    file = rename(narrow(spec))
    shapes = {n: tuple(t.shape) for n, t in file.items()}
    for extra, kind, text in (
        ("scaled_fp8", UnsupportedError, "fp8 weights with scales"),
        ("x.y", ArtifactError, "'x.y'"),
    ):
        with pytest.raises(kind, match=text):
            find_tensors(spec, narrow(spec), shapes | {extra: (0,)}, "f")
