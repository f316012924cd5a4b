"""ControlNets: diffusers' own pipelines with their modules, and with engines in the place of either or both.

As in test_pipelines.py, text embeddings are given and all computes in f32.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from svdq_trt.artifact.tensor_file import save_tensors
from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.calibrate import collect, sample
from svdq_trt.checkpoint import load
from svdq_trt.cli import main
from svdq_trt.contract.numerics import CPU
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.flux import DOUBLE, SINGLE
from svdq_trt.runtime import attach, detach
from tests.cpu.models.test_pipelines import flux_call, result, sdxl_call, sdxl_like
from tests.harness.published import random_module
from tests.harness.runners import TorchRunner
from tests.harness.tiny_pipelines import flux, picture, sdxl

pytest.importorskip("transformers", reason="transformers is not installed: diffusers' pipelines import it")

INPAINT = sdxl_like("inpaint", {"in_channels": 9}, sample=9)
#: of the last step the ControlNet is left out
CONTROL = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.8}
PICTURE, SIDES = picture(64, 128), {"height": 64, "width": 128}
NETS = {"sdxl": "sdxl-controlnet-tiny", "flux": "flux1-controlnet-tiny"}


class Case(NamedTuple):
    """A pipeline's class, its denoiser, and a call."""

    kind: str
    denoiser: str
    call: Callable[[Any], Any]

    @property
    def net(self) -> str:
        return NETS["flux" if self.kind.startswith("Flux") else "sdxl"]


CASES = {
    "sdxl": Case("StableDiffusionXLControlNetPipeline", "sdxl-tiny", sdxl_call(2, image=PICTURE, **SIDES, **CONTROL)),
    "sdxl image": Case(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "sdxl-tiny",
        sdxl_call(image=PICTURE, control_image=PICTURE, strength=0.9, **CONTROL),
    ),
    "sdxl inpaint": Case(
        "StableDiffusionXLControlNetInpaintPipeline",
        "inpaint",
        sdxl_call(image=PICTURE, control_image=PICTURE, mask_image=picture(64, 128, mask=True), **SIDES, **CONTROL),
    ),
    "flux": Case("FluxControlNetPipeline", "flux1-tiny", flux_call(2, control_image=PICTURE, **CONTROL)),
    "flux guided": Case(
        "FluxControlNetPipeline", "flux1-tiny", flux_call(guidance=True, control_image=PICTURE, **CONTROL)
    ),
}
PLAIN = {"sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}
SEVERAL = {
    "sdxl": sdxl_call(image=[PICTURE] * 2, **SIDES, controlnet_conditioning_scale=[0.3, 0.4]),
    "flux": flux_call(control_image=[PICTURE] * 2, controlnet_conditioning_scale=[0.3, 0.4]),
}


@pytest.fixture(autouse=True, scope="module")
def variants():
    with pytest.MonkeyPatch.context() as patch:
        for spec in (INPAINT, INPAINT.with_controlnet()):
            patch.setitem(MODELS, spec.name, spec)
        yield


@pytest.fixture(scope="module")
def module():
    """diffusers' module of a model, each made once."""
    return functools.cache(lambda name: random_module(get_model(name), 3))


@pytest.fixture(scope="module")
def runner():
    """What runs in the place of a model's engine, each made once."""
    return functools.cache(lambda name: TorchRunner(get_model(name), 3))


def pipeline(kind: str, denoiser: Any, **more: Any) -> Any:
    pipe = (flux if kind.startswith("Flux") else sdxl)(kind, denoiser, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same_with(pipe: Any, call: Callable[[Any], Any], *engines: TorchRunner) -> None:
    """The pipeline gives the same latents with engines attached."""
    want = result(call(pipe))
    for engine in engines:
        engine.calls.clear()
        attach(pipe, engine)
    got = result(call(pipe))
    assert all(engine.calls for engine in engines)
    detach(pipe)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * float(want.abs().max()))


def residuals(call: dict[str, torch.Tensor], spec: Any) -> list[torch.Tensor]:
    return [call[io.name] for io in spec.inputs if io.default is not None]


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_pipeline_gives_what_it_gives_with_its_own_modules(name, module, runner):
    case = CASES[name]
    pipe = pipeline(case.kind, module(case.denoiser), controlnet=module(case.net))
    engine = runner(f"{case.denoiser}-with-controlnet")
    assert_same_with(pipe, case.call, engine, runner(case.net))
    first, last = residuals(engine.calls[0], engine.spec), residuals(engine.calls[-1], engine.spec)
    assert min(tensor.std() for tensor in first) > 0.01 and not any(tensor.any() for tensor in last)


@pytest.mark.parametrize("name", SEVERAL)
@torch.inference_mode()
def test_residuals_of_several_controlnets_are_summed_by_diffusers(name, module, runner):
    case = CASES[name]
    pipe = pipeline(case.kind, module(case.denoiser), controlnet=[module(case.net)] * 2)
    assert_same_with(pipe, SEVERAL[name], runner(f"{case.denoiser}-with-controlnet"))
    with pytest.raises(ArtifactError, match=r"pipe\.controlnet: _class_name is '\w*MultiControlNetModel', want"):
        attach(pipe, runner(case.net))


@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_engine_that_takes_residuals_runs_without_a_controlnet(name, module, runner):
    denoiser = CASES[name].denoiser
    call = sdxl_call(**SIDES) if name == "sdxl" else flux_call()
    engine = runner(f"{denoiser}-with-controlnet")
    assert_same_with(pipeline(PLAIN[name], module(denoiser)), call, engine)
    assert not any(tensor.any() for tensor in residuals(engine.calls[0], engine.spec))


@pytest.mark.parametrize("name", SEVERAL)
@torch.inference_mode()
def test_engine_without_inputs_for_residuals_refuses_them(name, module, runner):
    case = CASES[name]
    pipe = pipeline(case.kind, module(case.denoiser), controlnet=module(case.net))
    with pytest.raises(UnsupportedError, match=r"tuple|list given, want nothing.*svdq-trt build --controlnet\.$"):
        case.call(attach(pipe, runner(case.denoiser)))


REFUSED = {
    "guess mode": ("sdxl", {"guess_mode": True}, "guess_mode: bool given, want nothing"),
    "image prompt": (
        "flux",
        {"joint_attention_kwargs": {"ip_adapter_image_embeds": [torch.ones(1)]}},
        "joint_attention_kwargs: dict given, want nothing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@torch.inference_mode()
def test_controlnet_refuses_what_it_has_no_input_for(name, module, runner):
    family, more, told = REFUSED[name]
    case = CASES[family]
    pipe = pipeline(case.kind, module(case.denoiser), controlnet=module(case.net))
    call = sdxl_call(image=PICTURE, **SIDES, **more) if family == "sdxl" else flux_call(control_image=PICTURE, **more)
    with pytest.raises(UnsupportedError, match=rf"pipe\.controlnet: {told}"):
        call(attach(pipe, runner(case.net)))


@pytest.mark.parametrize("model", ["sdxl-tiny", "flux1-tiny"])
def test_nodes_are_those_of_the_model_alone(model):
    spec, module = get_model(f"{model}-with-controlnet"), get_model(model).build()
    assert spec.recipe(module) == get_model(model).recipe(module)


@pytest.mark.parametrize("argument,blocks", [(DOUBLE, 19), (SINGLE, 38)])
def test_flux_residuals_are_shared_out_as_by_diffusers(argument, blocks):
    """Block i has residual i // ceil(blocks / residuals), of a ControlNet's and of the engine's."""
    spec = get_model("flux1-dev-with-controlnet")
    inputs = sum(io.name.startswith(argument) for io in spec.inputs)
    taken = []
    for count in range(1, blocks + 1):
        given = [f"residual {i}" for i in range(count)]
        found = spec.family.flatten({argument: given})[argument]
        if len(found) == inputs:
            taken.append(count)
            for block in range(blocks):
                want = given[block // math.ceil(blocks / count)]
                assert found[block // math.ceil(blocks / inputs)] == want, (count, block)
        else:
            assert found == given
    assert taken == ([1, 5, 6] if blocks == 19 else [1, 5, 10, 11, 12])


@pytest.mark.parametrize("given", [3, 4])
def test_another_number_of_residuals_is_refused(given):
    spec = get_model("flux1-dev-with-controlnet")
    inputs = [SimpleNamespace(name=io.name, dtype="bfloat16") for io in spec.inputs]
    transformer = Denoiser(SimpleNamespace(inputs=inputs), spec, "transformer")
    with pytest.raises(UnsupportedError, match=rf"controlnet_block_samples: {given} tensors, want 5"):
        transformer(torch.zeros(1, 4, 64), controlnet_block_samples=[torch.zeros(1)] * given)
    with pytest.raises(UnsupportedError, match="controlnet_blocks_repeat: bool given, want nothing"):
        transformer(torch.zeros(1, 4, 64), controlnet_blocks_repeat=True)


@pytest.mark.parametrize("model", ["sdxl-refiner", "flux1-kontext-dev", "./some-folder"])
def test_option_for_a_model_without_controlnets_is_refused_before_any_work(model, tmp_path, capsys):
    assert main(["build", "--model", model, "--controlnet", "--arch", "sm_89", "--out", str(tmp_path / "out")]) == 2
    assert f"--controlnet: model '{model}', want one of sdxl, sdxl-turbo, " in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["FluxPipeline", "FluxControlNetPipeline"])
@torch.inference_mode()
def test_recorded_calls_calibrate(kind, module, tmp_path):
    """With residuals where the pipeline has them; a file need not have them."""
    with_net = kind == "FluxControlNetPipeline"
    recorded = ("flux1-tiny-with-controlnet", *(("flux1-controlnet-tiny",) if with_net else ()))
    for name in recorded:
        spec = get_model(name)
        modules = {"controlnet": random_module(get_model(NETS["flux"]), 3)} if with_net else {}
        pipe = pipeline(kind, random_module(get_model("flux1-tiny"), 3), **modules)
        recorder = sample._record(spec, pipe, CPU, torch.float32, lambda done: None)
        recorder.begin({0, 1})
        with contextlib.suppress(sample._EnoughError):
            flux_call(**({"control_image": PICTURE} if with_net else {}))(pipe)
        tensors = recorder.tensors()
        assert len(tensors) == sum(io.default is None or with_net for io in spec.inputs) - (name == NETS["flux"])
        save_tensors(tmp_path / f"{name}.safetensors", tensors, {})
        found = collect(load(spec, random_seed=3), spec, data=tmp_path / f"{name}.safetensors")
        assert recorder.count and found.amax.keys() == {group.node for group in spec.groups(spec.build())}


def test_pipeline_that_asks_for_a_picture_is_refused_for_recording(tmp_path):
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "controlnet": ["diffusers", "ControlNetModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    want = "want one of sdxl-tiny-with-controlnet alone"
    with pytest.raises(ArtifactError, match=rf"model_index\.json: a pipeline with a ControlNet, {want}"):
        sample.check_pipeline(get_model("sdxl-tiny-with-controlnet"), tmp_path)
