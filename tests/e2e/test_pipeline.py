"""StableDiffusionXLPipeline, small and with random weights, on an engine folder's ONNX and on the same torch module.

Text encoders, VAE, scheduler and guidance are diffusers' and transformers' own; only the UNet is replaced.
"""

from __future__ import annotations

import pytest
import torch

from tests.harness.tiny_pipelines import sdxl_parts

pytest.importorskip("transformers", reason="transformers is not installed: the text encoders come from it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sdxl_tiny):
    """An engine folder for sm_90 (w4a8); its plan is not needed."""
    out = tmp_path_factory.mktemp("engines")
    sdxl_tiny.copy(out, "sm_90", check=False)
    return out / "sdxl-tiny-sm_90"


@pytest.fixture(scope="module")
def session(folder):
    from svdq_trt.runtime import OnnxSession

    with OnnxSession(folder, device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pipe(folder, tmp_path_factory):
    from diffusers import StableDiffusionXLPipeline

    from svdq_trt.artifact import svdq_file
    from svdq_trt.models import get_model
    from svdq_trt.nn.restore import restore_model

    unet = restore_model(svdq_file.load(folder / "svdq.safetensors"), get_model("sdxl-tiny"))
    made = StableDiffusionXLPipeline(unet=unet, **sdxl_parts(tmp_path_factory.mktemp("words")), add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def images(pipe, seed=0, nudge=0.0, **options):
    """Two guided steps (UNet batch 2) at 128 x 64 pixels, as the last latent unless `options` say otherwise."""
    start = torch.randn((1, 4, 16, 8), generator=torch.Generator().manual_seed(seed)) * (1 + nudge)
    asked = {"num_inference_steps": 2, "height": 128, "width": 64, "output_type": "latent", "guidance_scale": 5.0}
    return pipe("a fox", **(asked | {"latents": start.half()} | options)).images


def sqnr(want, got):
    want, got = want.double(), got.double()
    return float(10 * torch.log10(want.square().sum() / (want - got).square().sum()))


def test_pipeline_gives_the_torch_modules_result(pipe, session):
    """The result is as close as the torch module's own when its first latent changes in the last bits of f16."""
    from svdq_trt.runtime import attach, detach

    module = pipe.unet
    want, again = images(pipe), images(pipe, nudge=2.0**-11)
    attach(pipe, session)
    try:
        assert pipe.dtype == torch.float16 and pipe.device == torch.device("cpu")
        got, other = images(pipe), images(pipe, seed=1)
        size = images(pipe, output_type="pil")[0].size
    finally:
        detach(pipe)
    assert pipe.unet is module and torch.equal(images(pipe), want)
    figures = {"engine": sqnr(want, got), "torch, nudged": sqnr(want, again), "another seed": sqnr(want, other)}
    print(figures)
    assert figures["engine"] > 30 and figures["engine"] > figures["torch, nudged"] - 3, figures
    assert figures["another seed"] < 10, figures
    assert size == (64, 128)


def test_pipeline_that_never_had_the_torch_module(pipe, session, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from svdq_trt.runtime import attach

    bare = StableDiffusionXLPipeline(unet=None, **sdxl_parts(tmp_path), add_watermarker=False)
    bare.set_progress_bar_config(disable=True)
    attach(bare, session)
    assert sqnr(images(pipe), images(bare)) > 30
    assert sqnr(images(pipe, guidance_scale=1.0), images(bare, guidance_scale=1.0)) > 30  # batch 1: no guidance


def test_image_to_image_shares_the_engine(pipe, session):
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from svdq_trt.runtime import attach, detach

    attach(pipe, session)
    try:
        second = StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
        second.set_progress_bar_config(disable=True)
        picture = torch.rand((1, 3, 128, 64), generator=torch.Generator().manual_seed(0))
        out = second("a fox", image=picture, num_inference_steps=4, strength=0.5, output_type="np").images
    finally:
        detach(pipe)
    assert out.shape == (1, 128, 64, 3)


def test_what_the_engine_cannot_do_is_one_sentence(pipe, session):
    from svdq_trt.base.errors import ShapeError, SvdqError
    from svdq_trt.runtime import attach, detach

    attach(pipe, session)
    try:
        with pytest.raises(SvdqError, match=r"pipe\.unet: cross_attention_kwargs: dict given"):
            images(pipe, cross_attention_kwargs={"processor_option": 1})
        with pytest.raises(ShapeError, match=r"input 'sample': shape \[8, 4, 16, 8\], want \[1\.\.4, 4"):
            images(pipe, latents=None, num_images_per_prompt=4)
        with pytest.raises(SvdqError, match=r"pipe\.unet\.load_lora_adapter: not part of an engine"):
            pipe.unet.load_lora_adapter({"conv_in.lora_A.weight": torch.zeros(1, 1)})  # as load_lora_weights does
    finally:
        detach(pipe)
