"""Parts of a pipeline beside its denoiser: their ONNX graphs, and stand-ins that run them, against the modules."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError
from svdq_trt.build.graph import export_model
from svdq_trt.checkpoint.parts import load_part, locate_part
from svdq_trt.models.part_modules import Autoencoder, DCAutoencoder, FrameAutoencoder
from svdq_trt.models.parts import full_config
from svdq_trt.models.tiles import by_tiles
from svdq_trt.runtime.onnx_session import OnnxSession
from svdq_trt.runtime.shapes import check_inputs
from tests.harness.builds import some_minutes
from tests.harness.language_models import LANGUAGE_MODELS, QWEN2_5_VL
from tests.harness.part_graphs import SIZES, Direct, encoder, ids, part
from tests.harness.tiny_pipelines import deep_compression

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")

CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "projection_dim": 24,
    "max_position_embeddings": 20,
    "bos_token_id": 58,
    "eos_token_id": 59,
    "pad_token_id": 59,
}
T5 = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
VAE = {
    "block_out_channels": [16, 16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
DC = deep_compression(levels=2)  # 2 pixels a side
FRAMES = {  # 4 pixels a side
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.1] * 4,
    "latents_std": [1.5] * 4,
}


def values(one, batch, height, width):
    """Inputs of a part's graph, of a size that it was not traced with."""
    found = {}
    for io in one.inputs:
        shape = io.shape({"batch": batch, "height": height, "width": width, "tokens": 12})
        if io.name == "input_ids":
            found[io.name] = ids(*shape)
        elif io.name == "attention_mask":
            found[io.name] = (ids(*shape) != 59).long()
        else:
            found[io.name] = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(one.torch_dtype)
    return found


PARTS = [
    part("CLIPTextModel", CLIP | {"eos_token_id": 2}),  # published configs: the end is then the largest id
    part("CLIPTextModelWithProjection", CLIP | {"hidden_act": "gelu"}),
    part("T5EncoderModel", T5),
    part(*LANGUAGE_MODELS["qwen3-windowed"]),
    part("AutoencoderKL", VAE, "decoder"),
    part("AutoencoderKL", VAE, "encoder"),
    part("AutoencoderKLFlux2", VAE, "decoder"),
    part("AutoencoderKLFlux2", VAE, "encoder"),
    part("AutoencoderDC", DC, "decoder"),
    part("AutoencoderDC", DC, "encoder"),
]
#: of these the graphs in torch are compared with the modules in every run
RARE = [
    part("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
    part("AutoencoderKLQwenImage", FRAMES, "decoder"),
    part("AutoencoderKLQwenImage", FRAMES, "encoder"),
]


@pytest.mark.parametrize(
    "one", [*PARTS, *(pytest.param(one, marks=some_minutes) for one in RARE)], ids=lambda p: p.class_name + p.role
)
def test_graph_gives_the_modules_outputs_at_any_size(one, tmp_path):
    torch.manual_seed(0)
    module = one.build()
    feed = values(one, 2, 64, 32)
    graph = one.wrap(module)
    with torch.no_grad():
        want = graph(**feed)
    info = export_model(module, one, SIZES.ranges(), tmp_path / "model.onnx", lambda *_: None)
    assert not info.svdq_nodes and list(info.outputs) == [io.name for io in one.outputs]
    with OnnxSession(tmp_path / "model.onnx", device="cpu", threads=1) as session:
        got = session.run(feed)
    check_inputs(SIZES.tensors(one.inputs, one.torch_dtype), feed)
    for io, expected in zip(one.outputs, want if isinstance(want, tuple) else (want,), strict=True):
        sizes = {"batch": 2, "height": 64, "width": 32, "tokens": 12}
        assert io.shape(sizes) == tuple(expected.shape) == tuple(got[io.name].shape), io.name
        np.testing.assert_allclose(got[io.name], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("one", PARTS[:2], ids=lambda p: p.class_name)
def test_clip_is_called_as_pipelines_call_it(one):
    stand_in, module = encoder(one)
    text = ids(3, 20)
    want, got = (m(text, output_hidden_states=True) for m in (module, stand_in))
    assert type(got) is type(want) and len(got.hidden_states) == 4
    for a, b in zip((want[0], *want.hidden_states), (got[0], *got.hidden_states), strict=True):
        torch.testing.assert_close(b, a)
    assert stand_in(text).hidden_states is None
    torch.testing.assert_close(stand_in(text, return_dict=False)[0], want[0])
    assert stand_in.config.projection_dim == 24 and stand_in.dtype == torch.float32
    with pytest.raises(UnsupportedError, match=r"pipe\.text_encoder: attention_mask: given, want nothing"):
        stand_in(text, attention_mask=torch.ones_like(text))


def test_t5_is_called_with_a_mask_or_without():
    stand_in, module = encoder(PARTS[2], torch.float16)
    text = ids(3, 12)
    mask = (text != 59).long()
    for options in ({}, {"attention_mask": mask}):
        got = stand_in(text, **options)[0]
        assert got.dtype == torch.float16
        torch.testing.assert_close(got, module(text, **options)[0].half())
    with pytest.raises(UnsupportedError, match="output_hidden_states: True, want False"):
        stand_in(text, output_hidden_states=True)


@pytest.mark.parametrize("one", PARTS[2:4], ids=lambda p: p.class_name)
def test_a_shorter_text_is_that_of_the_module(one):
    """The engine reads masked tokens behind it."""
    stand_in, module = encoder(one)
    text = ids(3, 7)
    mask = torch.arange(7).ge(torch.tensor([[0], [2], [4]])).long()  # padded in front
    for options in ({}, {"attention_mask": mask}):
        want, got = (model(text, **options)[0] for model in (module, stand_in))
        assert got.shape == (3, 7, 32)
        torch.testing.assert_close(got, want)
    assert set(stand_in.runner.ran) == {(2, 12), (1, 12)}


def test_a_part_with_missing_tensors_is_refused(tmp_path):
    one = part("T5EncoderModel", T5)
    one.build().save_pretrained(tmp_path / "text_encoder")
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, file)
    with pytest.raises(
        ShapeError, match=r"text_encoder: 1 missing of \d+ tensors \(encoder\.final_layer_norm\.weight\)"
    ):
        load_part(one, tmp_path, "", None)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not a readable safetensors file"):
        locate_part(one, tmp_path, "")


@torch.no_grad()
def test_normalized_latents_are_those_of_flux2():
    """The pipeline's own arithmetic, with the module's statistics and with what the stand-in tells it."""
    from diffusers import Flux2KleinPipeline as Pipeline

    torch.manual_seed(0)
    parts = [part("AutoencoderKLFlux2", VAE, role) for role in ("decoder", "encoder")]
    module = parts[0].build().eval()
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 4.0)
    runners = [Direct(one, module) for one in parts]
    stand_in = Autoencoder(runners[0], "vae", full_config("AutoencoderKLFlux2", VAE), lambda: runners[1])
    images = torch.randn(3, 3, 32, 48)
    owners = (SimpleNamespace(vae=vae, _patchify_latents=Pipeline._patchify_latents) for vae in (module, stand_in))
    want, got = (Pipeline._encode_vae_image(owner, images, None) for owner in owners)
    torch.testing.assert_close(got, want)
    posterior = stand_in.encode(images).latent_dist
    deviation = module.bn.running_var.add(module.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    own = Pipeline._patchify_latents(module.encode(images).latent_dist.std)
    torch.testing.assert_close(Pipeline._patchify_latents(posterior.std), own / deviation)
    latents = Pipeline._unpatchify_latents(want * deviation + module.bn.running_mean.view(1, -1, 1, 1))
    pictures = stand_in.decode(Pipeline._unpatchify_latents(want)).sample
    torch.testing.assert_close(pictures, module.decode(latents).sample)
    for height in (5, 65):  # of one tile, and of several
        with pytest.raises(UnsupportedError, match=f"latent: {height} x 6, want multiples of 2"):
            stand_in.decode(torch.zeros(1, 4, height, 6))


def test_an_autoencoder_for_videos_takes_one_frame():
    parts = [part("AutoencoderKLQwenImage", FRAMES, role) for role in ("decoder", "encoder")]
    torch.manual_seed(0)
    module = parts[0].build().eval().requires_grad_(False)
    for name, value in module.named_parameters():
        if name.endswith(("gamma", "bias")):  # they are ones, and zeros
            value.uniform_(0.5, 1.5)
    runners = [Direct(one, copy.deepcopy(module)) for one in parts]
    config = full_config("AutoencoderKLQwenImage", FRAMES)
    stand_in = FrameAutoencoder(runners[0], "vae", config, lambda: runners[1])
    latents, images = torch.randn(3, 4, 1, 16, 24), torch.randn(3, 3, 1, 64, 96)
    want = module.decode(latents).sample
    assert want.max() == 1
    torch.testing.assert_close(stand_in.decode(latents, return_dict=False)[0], want)
    posterior, own = (one.encode(images).latent_dist for one in (stand_in, module))
    torch.testing.assert_close(posterior.parameters, own.parameters)
    assert stand_in.temperal_downsample == [False, True] and stand_in.config.latents_std == [1.5] * 4
    with pytest.raises(UnsupportedError, match=r"pipe\.vae: latent: 2 frames, want one: the engine's are of pictures"):
        stand_in.decode(torch.zeros(1, 4, 2, 8, 8))
    limited(runners, 16, 64)
    want = by_tiles(lambda z: module.decode(z[:, :, None]).sample[:, :, 0], latents[:, :, 0], (16, 16), 1)
    torch.testing.assert_close(stand_in.decode(latents).sample[:, :, 0], want)
    assert {shape[2:] for shape in runners[0].ran} == {(16, 16)}


def test_autoencoder_decodes_and_encodes():
    runners = [Direct(part("AutoencoderKL", VAE, role)) for role in ("decoder", "encoder")]
    config = full_config("AutoencoderKL", VAE)
    stand_in, module = Autoencoder(runners[0], "vae", config, lambda: runners[1]), runners[0].module
    latents, images = torch.randn(3, 4, 8, 4), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(stand_in.decode(latents, return_dict=False)[0], module.decode(latents).sample)
    torch.testing.assert_close(stand_in.decode(latents).sample, module.decode(latents).sample)
    want = module.encode(images).latent_dist.mode()
    torch.testing.assert_close(stand_in.encode(images).latent_dist.mode(), want)
    torch.testing.assert_close(stand_in.encode(images, return_dict=False)[0].mode(), want)
    assert stand_in.config.scaling_factor == 0.18215 and stand_in.config.force_upcast
    with pytest.raises(UnsupportedError, match=r"pipe\.vae\.enable_tiling: not part of an engine"):
        stand_in.enable_tiling()


def test_larger_pictures_go_through_an_autoencoder_by_tiles():
    runners = [Direct(part("AutoencoderKL", VAE, role)) for role in ("decoder", "encoder")]
    stand_in = Autoencoder(runners[0], "vae", full_config("AutoencoderKL", VAE), lambda: runners[1])
    module = runners[0].module
    limited(runners, 8, 64)
    images, latents = torch.randn(3, 3, 136, 56), torch.randn(1, 4, 8, 13)
    want = by_tiles(lambda x: module.encode(x).latent_dist.parameters, images, (64, 64), 8)
    torch.testing.assert_close(stand_in.encode(images).latent_dist.parameters, want)
    assert {shape[2:] for shape in runners[1].ran} == {(64, 56)}
    want = by_tiles(lambda z: module.decode(z).sample, latents, (8, 8), 1)
    torch.testing.assert_close(stand_in.decode(latents).sample, want)
    assert {shape[2:] for shape in runners[0].ran} == {(8, 8)}


def limited(runners, latents, pixels):
    """Have the engines take sides of so many at most."""
    for runner, most in zip(runners, (latents, pixels), strict=True):
        runner.inputs[0].max, runner.ran = (2, runner.inputs[0].max[1], most, most), []


@torch.no_grad()
@pytest.mark.parametrize("blocks", ["as published", "others"])
def test_a_deep_compression_autoencoder_decodes_and_encodes(blocks):
    """Also the few pixels for which diffusers writes linear attention in another way; larger pictures by tiles."""
    others = {"upsample_block_type": "pixel_shuffle", "downsample_block_type": "pixel_unshuffle"}
    others |= {"decoder_norm_types": "batch_norm", "decoder_act_fns": "relu"}
    config = DC | (others if blocks == "others" else {})
    parts = [part("AutoencoderDC", config, role) for role in ("decoder", "encoder")]
    torch.manual_seed(0)
    module = parts[0].build().eval()
    runners = [Direct(one, copy.deepcopy(module)) for one in parts]
    stand_in = DCAutoencoder(runners[0], "vae", full_config("AutoencoderDC", config), lambda: runners[1])
    for size in (4, 32):
        latents, images = torch.randn(3, 8, size, size // 2), torch.randn(3, 3, 2 * size, size)
        torch.testing.assert_close(stand_in.decode(latents).sample, module.decode(latents).sample)
        torch.testing.assert_close(stand_in.decode(latents, return_dict=False)[0], module.decode(latents).sample)
        torch.testing.assert_close(stand_in.encode(images).latent, module.encode(images).latent)
        torch.testing.assert_close(stand_in.encode(images, return_dict=False)[0], module.encode(images).latent)
    assert stand_in.config.encoder_block_out_channels == [16, 32] and stand_in.config.scaling_factor == 0.41407
    limited(runners, 16, 32)
    latents, images = torch.randn(1, 8, 16, 30), torch.randn(3, 3, 66, 30)
    want = by_tiles(lambda z: module.decode(z).sample, latents, (16, 16), 1)
    torch.testing.assert_close(stand_in.decode(latents).sample, want)
    want = by_tiles(lambda x: module.encode(x).latent, images, (32, 32), 2)
    torch.testing.assert_close(stand_in.encode(images).latent, want)
    assert [{shape[2:] for shape in runner.ran} for runner in runners] == [{(16, 16)}, {(32, 30)}]
