"""The engine's stand-in for diffusers' UNet: what reaches the engine, what comes back, what is refused."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ArtifactError, SvdqError, UnsupportedError
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.sdxl import ADAPTER, DOWN
from svdq_trt.runtime import attach, detach

SPEC = get_model("sdxl-tiny")
SIZES = {"batch": 2, "height": 128, "width": 64, "tokens": 77}


class Recorder:
    """A runner that keeps what it was given and returns sample + 1 in memory that it reuses."""

    def __init__(self, model="sdxl-tiny", sizes=SIZES):
        spec = get_model(model)
        self.model = model
        self.inputs = [
            TensorProfile(io.name, str(io.torch_dtype(spec.torch_dtype)).removeprefix("torch."), *[io.shape(sizes)] * 3)
            for io in spec.inputs
        ]
        self.output_names = [io.name for io in spec.outputs]
        self.calls = []
        self.memory = torch.zeros(SIZES["batch"], 4, 16, 8, dtype=torch.float16)

    def run(self, inputs):
        self.calls.append({name: t.clone() for name, t in inputs.items()})
        first = next(iter(inputs.values()))
        if first.shape != self.memory.shape:
            return dict.fromkeys(self.output_names, first + 1)
        self.memory.copy_(first + 1)
        return {self.output_names[0]: self.memory}

    def close(self):
        pass


class Pipe:
    """The parts of a pipeline that attach needs."""

    def __init__(self, unet=None, name="unet"):
        self.name = name
        setattr(self, name, unet)

    @property
    def components(self):
        return {"vae": None, self.name: getattr(self, self.name)}


@pytest.fixture
def runner():
    return Recorder()


@pytest.fixture
def unet(runner):
    return attach(Pipe(), runner).unet


def call_args(dtype=torch.float16):
    """Arguments as StableDiffusionXLPipeline passes them to its UNet."""
    sample, _, hidden, embeds, ids = SPEC.example_inputs(**SIZES, seed=1)
    added = {"text_embeds": embeds.to(dtype), "time_ids": ids.to(dtype)}
    return (sample.to(dtype), torch.tensor(801)), {
        "encoder_hidden_states": hidden.to(dtype),
        "added_cond_kwargs": added,
    }


def test_inputs_are_those_of_the_flat_module(unet, runner):
    args, kwargs = call_args()
    out = unet(*args, timestep_cond=None, cross_attention_kwargs=None, **kwargs, return_dict=False)
    (feed,) = runner.calls
    assert {n: (t.dtype, tuple(t.shape)) for n, t in feed.items()} == {
        io.name: (io.torch_dtype(torch.float16), io.shape(SIZES)) for io in SPEC.inputs
    }
    assert torch.equal(feed["timestep"], torch.tensor([801.0, 801.0]))  # one for all, as guidance doubles the batch
    assert torch.equal(feed["text_embeds"], kwargs["added_cond_kwargs"]["text_embeds"].float())
    assert isinstance(out, tuple) and torch.equal(out[0], args[0] + 1)


@pytest.mark.parametrize("timestep", [801, 801.0, torch.tensor([801, 801]), torch.tensor(801.0, dtype=torch.float64)])
def test_any_kind_of_timestep(unet, runner, timestep):
    (sample, _), kwargs = call_args()
    unet(sample, timestep, **kwargs)
    assert torch.equal(runner.calls[0]["timestep"], torch.tensor([801.0, 801.0]))


def test_returns_what_the_module_returns(unet):
    args, kwargs = call_args()
    out = unet(*args, **kwargs)
    assert isinstance(out, UNet2DConditionOutput) and torch.equal(out.sample, args[0] + 1)


def test_result_has_the_callers_dtype(unet):
    args, kwargs = call_args(torch.float32)
    assert unet(*args, **kwargs).sample.dtype == torch.float32


def test_result_outlives_the_next_run(unet):
    args, kwargs = call_args()
    first = unet(*args, **kwargs).sample
    kept = first.clone()
    unet(args[0] + 3, args[1], **kwargs)
    assert torch.equal(first, kept)


REFUSED = {
    "class_labels": torch.zeros(2),
    "timestep_cond": torch.zeros(2, 256),
    "attention_mask": torch.ones(2, 77),
    "cross_attention_kwargs": {"scale": 0.5},
    DOWN: (torch.zeros(1),),  # alone, as diffusers takes them, those of an adapter
    "mid_block_additional_residual": torch.zeros(1),
    "down_intrablock_additional_residuals": (torch.zeros(1),),
    "encoder_attention_mask": torch.ones(2, 77),
}


def test_every_optional_argument_of_the_module_is_reported():
    optional = {n for n, p in inspect.signature(UNet2DConditionModel.forward).parameters.items() if p.default is None}
    assert optional == {*REFUSED, "added_cond_kwargs"}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_the_engine_has_no_input_for(unet, runner, name):
    args, kwargs = call_args()
    told = ADAPTER if name == DOWN else name
    with pytest.raises(UnsupportedError, match=rf"pipe\.unet: {told}: \w+ given, want nothing"):
        unet(*args, **kwargs, **{name: REFUSED[name]})
    assert runner.calls == []


def test_refuses_added_conditions_it_does_not_know_and_misses_its_own(unet):
    args, kwargs = call_args()
    image = {"image_embeds": torch.zeros(2, 4)}
    with pytest.raises(UnsupportedError, match=r"unet: image_embeds: Tensor given"):
        unet(*args, kwargs["encoder_hidden_states"], added_cond_kwargs=kwargs["added_cond_kwargs"] | image)
    with pytest.raises(UnsupportedError, match="text_embeds: not given"):
        unet(*args, kwargs["encoder_hidden_states"])
    with pytest.raises(TypeError, match="nonsense"):
        unet(*args, **kwargs, nonsense=1)


def test_has_what_pipelines_read(unet):
    torch_config = SPEC.build().config
    assert {k: v for k, v in unet.config.items() if not k.startswith("_")} == {
        k: v for k, v in torch_config.items() if not k.startswith("_")
    }
    assert unet.config.in_channels == 4 and unet.config.time_cond_proj_dim is None
    assert unet.add_embedding.linear_1.in_features == 64 + 6 * 32
    assert unet.dtype == torch.float16 and unet.device == torch.device("cpu")
    assert list(unet.parameters()) == [] and not unet.training
    assert unet.to("cpu", torch.float32).dtype == torch.float16  # an engine is not cast


def test_config_keys_are_attributes_as_in_diffusers(unet):
    assert unet.in_channels == 4 and unet.sample_size == SPEC.config["sample_size"]


def test_the_family_makes_inputs_of_what_a_pipeline_gives(runner, monkeypatch):
    """Lists of tensors become a batch; what it leaves over is refused as any other argument is."""

    def flatten(self, call):
        return call | {name: torch.stack(value) for name, value in call.items() if isinstance(value, list)}

    args, kwargs = call_args()
    kwargs["encoder_hidden_states"] = list(kwargs["encoder_hidden_states"])
    unet = attach(Pipe(), runner).unet
    with pytest.raises(UnsupportedError, match=r"pipe\.unet: encoder_hidden_states: list given, want a tensor"):
        unet(*args, **kwargs)
    monkeypatch.setattr(type(SPEC.family), "flatten", flatten)
    out = unet(list(args[0]), args[1], **kwargs).sample
    assert torch.equal(out, args[0] + 1) and runner.calls[0]["encoder_hidden_states"].shape == (2, 77, 128)


def test_what_an_engine_has_not_is_missing_and_says_so(unet):
    assert not hasattr(unet, "set_attn_processor")
    with pytest.raises(SvdqError, match=r"pipe\.unet\.load_lora_adapter: not part of an engine"):
        unet.load_lora_adapter({})


@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec.library == "diffusers"])
def test_every_model_is_called_as_its_diffusers_class(model):
    """The spec's inputs, as arguments of the class's forward, become those inputs again."""
    spec = get_model(model)
    sizes = spec.profile.sizes(0)
    name = spec.subfolder
    recorder = Recorder(model, sizes)
    denoiser = getattr(attach(Pipe(name=name), recorder), name)
    inputs = {io.name: t for io, t in zip(spec.inputs, spec.example_inputs(**sizes, seed=1), strict=True)}
    arguments = spec.family.arguments(inputs)
    first = inputs[spec.inputs[0].name]
    outputs = spec.family.outputs(denoiser(**arguments, return_dict=False))
    assert len(outputs) == len(spec.outputs) and all(torch.equal(out, first + 1) for out in outputs)
    assert recorder.calls[0].keys() == inputs.keys() and spec.family.timestep in inputs
    assert all(torch.equal(recorder.calls[0][name], value) for name, value in inputs.items())
    found = denoiser(**arguments)
    outputs = spec.family.outputs([getattr(found, field.name) for field in dataclasses.fields(found)])
    assert len(outputs) == len(spec.outputs) and all(torch.equal(out, first + 1) for out in outputs)
    for key, value in spec.config.items():
        assert denoiser.config[key] == value


def test_detach_gives_the_module_back(runner):
    module = SPEC.build()
    pipe = attach(Pipe(module), runner)
    assert isinstance(pipe.unet, Denoiser) and pipe.unet.config is module.config
    assert attach(pipe, Recorder()).unet.original is module  # another engine in the same pipeline
    assert list(pipe.unet.children()) == []
    assert detach(pipe).unet is module
    with pytest.raises(UnsupportedError, match="Pipe: no engine in it, want a pipeline with an attached engine"):
        detach(pipe)


def test_original_can_be_let_go(runner):
    pipe = attach(Pipe(SPEC.build()), runner, keep_original=False)
    with pytest.raises(UnsupportedError, match="the torch module was not kept"):
        detach(pipe)


def test_refuses_another_model(runner):
    with pytest.raises(ArtifactError, match=r"pipe\.unet: \w+ is .* for sdxl-tiny"):
        attach(Pipe(get_model("sdxl").build()), runner)
    other = torch.nn.Linear(1, 1)
    other.config = {}
    with pytest.raises(ArtifactError, match="_class_name is 'Linear', want UNet2DConditionModel"):
        attach(Pipe(other), runner)
    with pytest.raises(UnsupportedError, match="Pipe: no unet among its components"):
        attach(Pipe(name="prior"), runner)
    with pytest.raises(UnsupportedError, match="SimpleNamespace: no unet"):
        attach(SimpleNamespace(), runner)
    runner.inputs = runner.inputs[:-1]
    with pytest.raises(ArtifactError, match="an engine for sdxl-tiny: inputs encoder_hidden_states, sample"):
        attach(Pipe(), runner)


def test_refuses_a_session_without_a_manifest(runner):
    runner.model = ""
    with pytest.raises(UnsupportedError, match="session: no manifest"):
        attach(Pipe(), runner)
