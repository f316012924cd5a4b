"""diffusers' own pipelines, small and with random weights, with their transformer and with what `attach` puts there.

Text embeddings are given, so no text encoder is needed; all computes in f32, so both agree closely.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from svdq_trt.artifact.tensor_file import save_tensors
from svdq_trt.calibrate import collect, sample
from svdq_trt.checkpoint import load
from svdq_trt.contract.numerics import CPU
from svdq_trt.models import MODELS, ModelSpec, get_model
from svdq_trt.runtime import attach, detach
from tests.harness.module_engines import klein
from tests.harness.published import random_module
from tests.harness.runners import CachedRunner, TorchRunner
from tests.harness.tiny_pipelines import (
    flux,
    flux2,
    krea2,
    longcat,
    picture,
    qwen,
    random,
    sdxl,
    vae,
    wan,
    without_encoders,
    z_image,
)

pytest.importorskip("transformers", reason="transformers is not installed: diffusers' pipelines import it")

SIZE = {"height": 64, "width": 128, "num_inference_steps": 2, "output_type": "latent"}


#: else its pipeline scales reference and result to a million pixels
KONTEXT = {"max_area": 64 * 128, "_auto_resize": False}


class Case(NamedTuple):
    """A pipeline around a transformer, and calls of it by name."""

    pipeline: Callable[[Any], Any]
    calls: dict[str, Callable[[Any], Any]]


def flux_call(batch: int = 1, guidance: bool = False, **more: Any) -> Callable[[Any], Any]:
    """A call with `batch` prompts, and with a negative prompt for each."""
    text = {"prompt_embeds": random(batch, 16, 96, seed=1), "pooled_prompt_embeds": random(batch, 48, seed=2)}
    if guidance:
        text |= {
            "negative_prompt_embeds": random(batch, 16, 96, seed=3),
            "negative_pooled_prompt_embeds": random(batch, 48, seed=4),
            "true_cfg_scale": 3.0,
        }
    return lambda pipe: pipe(**text, **SIZE, **more, generator=torch.Generator().manual_seed(5))


def qwen_call(*lengths: int, negative: tuple[int, ...] = (), **more: Any) -> Callable[[Any], Any]:
    """A call with prompts of these lengths, which are padded to the longest; and negative ones."""
    text = qwen_text(lengths, seed=1)
    if negative:
        text |= {f"negative_{name}": value for name, value in qwen_text(negative, seed=2).items()}
        text |= {"true_cfg_scale": 3.0}
    return lambda pipe: pipe(**text, **SIZE, **more, generator=torch.Generator().manual_seed(5))


def qwen_text(lengths: tuple[int, ...], seed: int) -> dict[str, Any]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    embeds = random(len(lengths), max(lengths), 96, seed=seed)
    return {"prompt_embeds": torch.where(mask[..., None], embeds, 7.0), "prompt_embeds_mask": mask.long()}


def z_call(*lengths: int, negative: tuple[int, ...] = (), **more: Any) -> Callable[[Any], Any]:
    """A call with prompts of these lengths, and with negative ones."""
    text: dict[str, Any] = {"prompt_embeds": [random(n, 96, seed=n) for n in lengths], "guidance_scale": 0.0}
    if negative:
        text |= {"negative_prompt_embeds": [random(n, 96, seed=n) for n in negative], "guidance_scale": 3.0}
    return lambda pipe: pipe(**text, **(SIZE | more), generator=torch.Generator().manual_seed(5))


def text_call(batch: int, *shape: int, negative: int = 0, scale: float = 1.0, **more: Any) -> Callable[[Any], Any]:
    """A call with prompts of `shape`, and with negative ones of `negative` tokens, at that guidance."""
    text: dict[str, Any] = {"prompt_embeds": random(batch, *shape, seed=1), "guidance_scale": scale}
    if negative:
        text["negative_prompt_embeds"] = random(batch, negative, *shape[1:], seed=2)
    return lambda pipe: pipe(**text, **(SIZE | more), generator=torch.Generator().manual_seed(5))


def masked_call(*lengths: int, negative: tuple[int, ...] = (), mask: str, **more: Any) -> Callable[[Any], Any]:
    """A call of Krea 2 or Chroma with prompts of these lengths, and negative ones, padded to 16 tokens in between."""
    text: dict[str, Any] = {}
    for prefix, counts in (("", lengths), ("negative_", negative)):
        for_krea = mask == "prompt_embeds_mask"
        kept = torch.ones(len(counts), 16, dtype=torch.bool if for_krea else torch.float32)
        for row, count in zip(kept, counts, strict=True):
            row[count - 2 : 14] = 0
        if counts:
            embeds = random(len(counts), 16, *((3, 128) if for_krea else (96,)), seed=len(prefix) + 1)
            text |= {f"{prefix}prompt_embeds": embeds, f"{prefix}{mask}": kept}
    scale = {"guidance_scale": (3.0 if negative else 0.0)}
    return lambda pipe: pipe(**text, **scale, **SIZE, **more, generator=torch.Generator().manual_seed(5))


def krea_call(*lengths: int, negative: tuple[int, ...] = ()) -> Callable[[Any], Any]:
    return masked_call(*lengths, negative=negative, mask="prompt_embeds_mask")


def chroma_call(*lengths: int, negative: tuple[int, ...] = ()) -> Callable[[Any], Any]:
    return masked_call(*lengths, negative=negative, mask="prompt_attention_mask")


def longcat_call(*prompts: str, negative: str = "", scale: float = 1.0) -> Callable[[Any], Any]:
    return lambda pipe: pipe(
        list(prompts),
        [negative] * len(prompts),
        guidance_scale=scale,
        enable_prompt_rewrite=False,
        **SIZE,
        generator=torch.Generator().manual_seed(5),
    )


def sdxl_call(batch: int = 1, **more: Any) -> Callable[[Any], Any]:
    """A guided call."""
    text = {"prompt_embeds": random(batch, 77, 128, seed=1), "negative_prompt_embeds": random(batch, 77, 128, seed=2)}
    text |= {f"{name}pooled_prompt_embeds": random(batch, 64, seed=3) for name in ("", "negative_")}
    rest = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 4.0}
    return lambda pipe: pipe(**text, **rest, **more, generator=torch.Generator().manual_seed(5))


VIDEO = {"num_frames": 9}


def sdxl_like(name: str, changes: dict[str, Any], **dims: int) -> ModelSpec:
    """sdxl-tiny with another configuration, and another second dimension of some inputs."""
    tiny = get_model("sdxl-tiny")
    inputs = tuple(
        replace(io, dims=(io.dims[0], dims[io.name], *io.dims[2:])) if io.name in dims else io for io in tiny.inputs
    )
    return replace(tiny, name=name, config={**tiny.config, **changes}, inputs=inputs)


#: models that are variants of a twin
VARIANTS = (
    klein(),
    sdxl_like("inpaint", {"in_channels": 9}, sample=9),
    sdxl_like("refiner", {"projection_class_embeddings_input_dim": 64 + 5 * 32}, time_ids=5),
    replace(get_model("wan-tiny"), name="low", subfolder="transformer_2"),
)


CASES = {
    "flux2-tiny": Case(
        lambda transformer: flux2("Flux2Pipeline", transformer),
        {
            "one": text_call(1, 11, 96, scale=4.0),
            "batch": text_call(2, 16, 96, scale=4.0),
            "references": text_call(1, 16, 96, scale=4.0, image=[picture(64, 128), picture(128, 96)]),
        },
    ),
    "klein": Case(
        lambda transformer: flux2("Flux2KleinPipeline", transformer),
        {
            "one": text_call(1, 11, 96),
            "both branches": text_call(2, 11, 96, negative=5, scale=4.0),
            "reference": text_call(1, 11, 96, image=picture(64, 128)),
        },
    ),
    "krea2-tiny": Case(
        krea2,
        {"one": krea_call(5), "batch": krea_call(5, 16, 9), "both branches": krea_call(5, 16, negative=(3, 4))},
    ),
    "chroma-tiny": Case(
        lambda transformer: without_encoders("ChromaPipeline", vae(), transformer=transformer),
        {"one": chroma_call(5), "batch": chroma_call(5, 16, 9), "both branches": chroma_call(5, 9, negative=(3, 4))},
    ),
    "longcat-tiny": Case(
        longcat,
        {
            "one": longcat_call("a"),
            "batch": longcat_call("a", "b"),
            "both branches": longcat_call("a", "b", negative="no", scale=4.0),
        },
    ),
    "wan-tiny": Case(
        lambda transformer: wan("WanPipeline", transformer),
        {
            "one": text_call(1, 16, 96, **VIDEO),
            "image": text_call(1, 16, 96, num_frames=1),
            "both branches": text_call(2, 16, 96, negative=7, scale=4.0, **VIDEO),
        },
    ),
    "inpaint": Case(
        lambda unet: sdxl("StableDiffusionXLInpaintPipeline", unet),
        {
            "one": sdxl_call(image=picture(64, 128), mask_image=picture(64, 128, mask=True), height=64, width=128),
            "batch": sdxl_call(2, image=picture(64, 128), mask_image=picture(64, 128, mask=True), height=64, width=128),
        },
    ),
    "refiner": Case(
        lambda unet: sdxl("StableDiffusionXLImg2ImgPipeline", unet, requires_aesthetics_score=True),
        {"one": sdxl_call(image=picture(64, 128)), "batch": sdxl_call(2, image=picture(64, 128))},
    ),
    "flux1-tiny": Case(
        lambda transformer: flux("FluxPipeline", transformer),
        {"one": flux_call(), "batch": flux_call(2), "both branches": flux_call(2, guidance=True)},
    ),
    "flux1-kontext-tiny": Case(
        lambda transformer: flux("FluxKontextPipeline", transformer),
        {
            "one": flux_call(image=picture(64, 128), **KONTEXT),
            "batch": flux_call(2, image=picture(64, 128), **KONTEXT),
            "smaller reference": flux_call(image=picture(80, 48), **KONTEXT),
            "both branches": flux_call(guidance=True, image=picture(64, 128), **KONTEXT),
            "no reference": flux_call(**KONTEXT),
        },
    ),
    "flux1-fill-tiny": Case(
        lambda transformer: flux("FluxFillPipeline", transformer),
        {
            "one": flux_call(image=picture(64, 128), mask_image=picture(64, 128, mask=True)),
            "batch": flux_call(2, image=picture(64, 128), mask_image=picture(64, 128, mask=True)),
        },
    ),
    "qwen-image-tiny": Case(
        lambda transformer: qwen("QwenImagePipeline", transformer),
        {
            "one": qwen_call(11),
            "one text token": qwen_call(1),
            "batch": qwen_call(11, 17, 11),
            "images of one prompt": qwen_call(11, num_images_per_prompt=2),
            "both branches": qwen_call(11, 17, negative=(3, 5)),
        },
    ),
    "qwen-image-edit-tiny": Case(
        lambda transformer: qwen("QwenImageEditPlusPipeline", transformer),
        {
            "one": qwen_call(11, image=picture(64, 128)),
            "two references": qwen_call(11, image=[picture(64, 128), picture(128, 64)]),
            "both branches": qwen_call(11, negative=(3,), image=picture(64, 128)),
        },
    ),
    "z-image-tiny": Case(
        z_image,
        {
            "one": z_call(11),
            "image of 32 tokens and text of 32": z_call(32),
            "image that is filled up": z_call(40, height=80, width=48),
            "batch": z_call(11, 40, 17),
            "both branches": z_call(11, 40, negative=(33, 3)),
        },
    ),
    "flux1-control-tiny": Case(
        lambda transformer: flux("FluxControlPipeline", transformer),
        {"one": flux_call(control_image=picture(64, 128)), "batch": flux_call(2, control_image=picture(64, 128))},
    ),
}


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    for spec in VARIANTS:
        monkeypatch.setitem(MODELS, spec.name, spec)


def result(found: Any) -> torch.Tensor:
    """The latents of a pipeline's result."""
    latents: torch.Tensor = found["frames" if "frames" in found else "images"]
    return latents


@pytest.mark.parametrize("name,call", [(name, call) for name, case in CASES.items() for call in case.calls])
@torch.inference_mode()
def test_pipeline_gives_what_it_gives_with_its_own_transformer(name, call, monkeypatch):
    for size in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # else a reference is scaled to a million pixels
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{size}", 64 * 128)
    spec = get_model(name)
    module = random_module(spec, 3)
    pipe = CASES[name].pipeline(module)
    pipe.set_progress_bar_config(disable=True)
    run = CASES[name].calls[call]
    want = result(run(pipe))
    runner = TorchRunner(spec, 3)
    attach(pipe, runner)
    got = result(run(pipe))
    assert runner.calls and getattr(detach(pipe), spec.subfolder) is module
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * float(want.abs().max()))


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@torch.inference_mode()
def test_a_timestep_of_each_token_is_one_of_each_frame(image):
    """Wan 2.2 TI2V: a video that continues an image has no noise in its first frame."""
    spec = get_model("wan-tiny")
    kind = "WanImageToVideoPipeline" if image else "WanPipeline"
    pipe = wan(kind, random_module(spec, 3), expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    more = {"image": picture(64, 128)} if image else {}
    run = text_call(1, 16, 96, negative=7, scale=4.0, **VIDEO, **more)
    want, runner = result(run(pipe)), TorchRunner(spec, 3)
    got = result(run(attach(pipe, runner)))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * float(want.abs().max()))
    first = runner.calls[0]["timestep"]
    assert first.shape == (1, 3) and first[0].tolist() == [0.0 if image else 1000.0, 1000.0, 1000.0]


@torch.inference_mode()
def test_two_experts_are_two_engines():
    """Wan 2.2 A14B: one transformer for the first steps, one for the last."""
    high, low = get_model("wan-tiny"), get_model("low")
    modules = {"transformer": random_module(high, 3), "transformer_2": random_module(low, 4)}
    pipe = wan("WanPipeline", **modules, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    run = text_call(1, 16, 96, negative=7, scale=4.0, **VIDEO | {"num_inference_steps": 3})
    want, runners = result(run(pipe)), (TorchRunner(high, 3), TorchRunner(low, 4))
    for runner in runners:
        attach(pipe, runner)
    got = result(run(pipe))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * float(want.abs().max()))
    assert [len(runner.calls) for runner in runners] == [2, 4]
    detach(pipe)
    assert {name: getattr(pipe, name) for name in modules} == modules


@pytest.mark.parametrize("name", [*CASES, "low"])
@torch.inference_mode()
def test_recorded_calls_calibrate(name, tmp_path):
    """What a pipeline gives its denoiser at each step, of prompts and branches of any length."""
    spec = get_model(name)
    if name == "low":
        pipe = wan("WanPipeline", None, transformer_2=random_module(spec, 3), boundary_ratio=1.1)
        call = CASES["wan-tiny"].calls["both branches"]
    else:
        pipe, calls = CASES[name].pipeline(random_module(spec, 3)), CASES[name].calls
        call = calls.get("both branches", next(iter(calls.values())))
    pipe.set_progress_bar_config(disable=True)
    recorder = sample._record(spec, pipe, CPU, torch.float32, lambda done: None)
    recorder.begin({0, 1})
    with contextlib.suppress(sample._EnoughError):
        call(pipe)
    save_tensors(tmp_path / "inputs.safetensors", recorder.tensors(), {})
    found = collect(load(spec, random_seed=3), spec, data=tmp_path / "inputs.safetensors")
    assert recorder.count and found.amax.keys() == {group.node for group in spec.groups(spec.build())}


#: branches in calls of their own, in contexts that a pipeline names and in none, with samples of several lengths
BRANCHES = [name for name, case in CASES.items() if "both branches" in case.calls]


@pytest.mark.parametrize("name", BRANCHES)
@torch.inference_mode()
def test_each_branch_of_guidance_has_a_step_cache_of_its_own(name, monkeypatch):
    for size in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{size}", 64 * 128)
    spec = get_model(name)
    runner = CachedRunner(spec, 3)
    pipe = CASES[name].pipeline(random_module(spec, 3))
    pipe.set_progress_bar_config(disable=True)
    attach(pipe, runner)
    for _ in range(2):
        runner.caches.clear()
        CASES[name].calls["both branches"](pipe)
        steps = SIZE["num_inference_steps"]
        *caches, last = runner.caches
        assert last is None and None not in caches  # forgotten behind the picture, not in it
        first, *others = (caches[i : i + len(caches) // steps] for i in range(0, len(caches), len(caches) // steps))
        assert others == [first] * (steps - 1) and len({*first}) == len(first) > (name != "z-image-tiny")
