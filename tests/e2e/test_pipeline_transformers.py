"""FluxPipeline and PixArtSigmaPipeline, small and with random weights, on engine folders and on the same torch modules.

Text embeddings are given, so no text encoder is needed; scheduler and guidance are diffusers' own.
"""

from __future__ import annotations

import pytest
import torch

from tests.harness.builds import build
from tests.harness.tiny_pipelines import flux, random, vae

pytest.importorskip("transformers", reason="transformers is not installed: diffusers' pipelines import it")


def flux_pipeline(transformer):
    pipe = flux("FluxPipeline", transformer)
    pipe.vae.bfloat16()
    return pipe


def flux_call(pipe, nudge=0.0, seed=2, **options):
    """Two steps at 64 x 128 pixels: 4 x 8 image tokens of 16 channels.

    diffusers multiplies timestep and guidance by 1000 in bfloat16, the float32 twin does so exactly; with a guidance
    of 4 and steps at 1000 and 500 both get the same numbers.
    """
    prompt = {
        "prompt_embeds": random(1, 16, 96).bfloat16(),
        "pooled_prompt_embeds": random(1, 48).bfloat16(),
    }
    latents = (random(1, 4 * 8, 16, seed=seed) * (1 + nudge)).bfloat16()
    return pipe(
        **(
            prompt
            | {
                "latents": latents,
                "height": 64,
                "width": 128,
                "num_inference_steps": 2,
                "guidance_scale": 4.0,
                "output_type": "latent",
            }
            | options
        )
    ).images


def pixart(transformer):
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    return PixArtSigmaPipeline(None, None, vae().half(), transformer, DPMSolverMultistepScheduler())


def pixart_call(pipe, nudge=0.0, seed=2, **options):
    """Two guided steps (batch 2) at 64 x 128 pixels; the text is 9 of 24 tokens, the negative one 3."""
    mask = (torch.arange(24) < 9).long()[None]
    prompt = {
        "prompt_embeds": random(1, 24, 96).half(),
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": random(1, 24, 96, seed=3).half(),
        "negative_prompt_attention_mask": (torch.arange(24) < 3).long()[None],
    }
    latents = (random(1, 4, 8, 16, seed=seed) * (1 + nudge)).half()
    return pipe(
        **(
            prompt
            | {
                "latents": latents,
                "height": 64,
                "width": 128,
                "num_inference_steps": 2,
                "output_type": "latent",
                "use_resolution_binning": False,
            }
            | options
        )
    ).images


#: model -> its pipeline, a call of it, half the distance of two numbers of the activation dtype, least SQNR in dB
CASES = {"flux1-tiny": (flux_pipeline, flux_call, 2.0**-8, 25), "pixart-tiny": (pixart, pixart_call, 2.0**-11, 30)}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The model's name, its engine folder for sm_90 (w4a8, no plan), and a pipeline with its torch module."""
    from svdq_trt.artifact import svdq_file
    from svdq_trt.models import get_model
    from svdq_trt.nn.restore import restore_model

    model, out = request.param, tmp_path_factory.mktemp("engines")
    done = build(model, out, "--arch", "sm_90", "--backend", "tensorrt", "--no-check")
    assert done.returncode in (0, 4), done.stderr  # 4: no TensorRT here builds for sm_90
    folder = out / f"{model}-sm_90"
    loaded = svdq_file.load(folder / "svdq.safetensors")
    pipe = CASES[model][0](quantized_module(get_model(model), loaded, restore_model))
    pipe.set_progress_bar_config(disable=True)
    return model, folder, pipe


def quantized_module(spec, loaded, restore_model):
    """The quantized module as in the flat one: FLUX's positions then come from a table, which its processors read."""
    return getattr(spec.wrap(restore_model(loaded, spec)), spec.family.WRAPPED)


def sqnr(want, got):
    want, got = want.double(), got.double()
    return float(10 * torch.log10(want.square().sum() / (want - got).square().sum()))


def test_pipeline_gives_the_torch_modules_result(case):
    """The result is as close as the torch module's own when its first latent changes in the last bits."""
    from svdq_trt.runtime import OnnxSession, attach, detach

    model, folder, pipe = case
    _, call, ulp, least = CASES[model]
    module = pipe.transformer
    want, again = call(pipe), call(pipe, nudge=ulp)
    with OnnxSession(folder, device="cpu", threads=1) as session:
        attach(pipe, session)
        try:
            assert pipe.dtype == module.dtype == pipe.transformer.dtype
            got, other = call(pipe), call(pipe, seed=7)
        finally:
            detach(pipe)
    figures = {"engine": sqnr(want, got), "torch, nudged": sqnr(want, again), "other latents": sqnr(want, other)}
    print(model, figures)
    assert pipe.transformer is module and got.dtype == want.dtype
    assert figures["engine"] > least and figures["engine"] > figures["torch, nudged"] - 4, figures
    assert figures["other latents"] < 10, figures


def test_attention_kwargs_are_refused(case):
    from svdq_trt.base.errors import UnsupportedError
    from svdq_trt.runtime import OnnxSession, attach, detach

    model, folder, pipe = case
    if model != "flux1-tiny":
        pytest.skip(f"the pipeline of {model} has no such argument")
    with OnnxSession(folder, device="cpu", threads=1) as session:
        attach(pipe, session)
        try:
            with pytest.raises(UnsupportedError, match=r"pipe\.transformer: joint_attention_kwargs: dict given"):
                flux_call(pipe, joint_attention_kwargs={"scale": 0.5})
        finally:
            detach(pipe)
