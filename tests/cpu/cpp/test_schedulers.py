"""Schedulers of examples/cpp against diffusers', bit for bit as on a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load_file, save_file

from tests.cpu.cpp.conftest import run
from tests.harness.gpu_arithmetic import AsOnGpu
from tests.harness.tiny_pipelines import random

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EULER = {
    "published": SDXL | {"timestep_spacing": "leading", "steps_offset": 1},
    "turbo": SDXL | {"timestep_spacing": "trailing"},
    "linspace": SDXL,
    "defaults": {},
    "velocity": SDXL | {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
    "clean": SDXL | {"prediction_type": "sample", "num_train_timesteps": 700},
}
FLOW = {
    "dev": {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15},
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False, "base_image_seq_len": 256, "max_image_seq_len": 4096},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "max_shift": 0.9},
    "defaults": {},
    "shift": {"shift": 1.7},
}


def given(tmp_path, config, dtype):
    """Files of a config, latents and a model's output."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"latents": (3 * random(4, 33)).to(dtype), "output": random(4, 33, seed=2).to(dtype)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tensors


def compare(got, want):
    assert torch.equal(got, want), (got.flatten()[:8], want.flatten()[:8], (got != want).sum())


def compare_steps(got, scheduler, tensors):
    latents = tensors["latents"]
    scheduler.set_begin_index(0)
    for i, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, EulerDiscreteScheduler):
            scheduler.scale_model_input(latents, t)
        latents = scheduler.step(tensors["output"], t, latents, return_dict=False)[0]
        compare(got[f"latents{i}"], latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 30, 50])
@pytest.mark.parametrize("name", EULER)
def test_euler_discrete(driver, tmp_path, name, steps, dtype):
    tensors = given(tmp_path, EULER[name], dtype)
    done = run(driver, "euler", tmp_path / "config.json", steps, tmp_path / "in.safetensors", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    got = load_file(tmp_path / "out")
    with AsOnGpu(scalars_there=False):
        scheduler = EulerDiscreteScheduler(**EULER[name])
        scheduler.set_timesteps(steps)
        compare(got["timesteps"], scheduler.timesteps)
        compare(got["sigmas"], scheduler.sigmas)
        compare(got["first"], scheduler.init_noise_sigma.reshape(1))
        compare(got["factors"], torch.stack([1 / (sigma**2 + 1) ** 0.5 for sigma in scheduler.sigmas[:-1]]))
        compare_steps(got, scheduler, tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("steps", "tokens"), [(1, 256), (4, 4096), (7, 1000), (28, 4096), (50, 6889)])
@pytest.mark.parametrize("name", FLOW)
def test_flow_match_euler_discrete(driver, tmp_path, name, steps, tokens, dtype):
    tensors = given(tmp_path, FLOW[name], dtype)
    config = tmp_path / "config.json"
    done = run(driver, "flow", config, steps, tokens, tmp_path / "in.safetensors", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    got, scheduler = load_file(tmp_path / "out"), FlowMatchEulerDiscreteScheduler(**FLOW[name])
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[n] for n in names))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    compare(got["timesteps"], scheduler.timesteps)
    compare(got["sigmas"], scheduler.sigmas)
    with AsOnGpu(scalars_there=True):
        compare_steps(got, scheduler, tensors)


REFUSED = {
    "use_karras_sigmas: true, want false": ("euler", {"use_karras_sigmas": True}),
    "use_beta_sigmas: true, want false": ("flow", {"use_beta_sigmas": True}),
    'interpolation_type: "log_linear", want "linear"': ("euler", {"interpolation_type": "log_linear"}),
    "rescale_betas_zero_snr: true": ("euler", {"rescale_betas_zero_snr": True}),
    "trained_betas: [0.1,0.2], want null": ("euler", {"trained_betas": [0.1, 0.2]}),
    "beta_schedule: squaredcos_cap_v2, want one of linear scaled_linear": (
        "euler",
        {"beta_schedule": "squaredcos_cap_v2"},
    ),
    "prediction_type: flow, want one of": ("euler", {"prediction_type": "flow"}),
    "steps: 5, want at most 4": ("euler", {"num_train_timesteps": 4}),
    "invert_sigmas: true, want false": ("flow", {"invert_sigmas": True}),
    "stochastic_sampling: true, want false": ("flow", {"stochastic_sampling": True}),
    "shift_terminal: 0.02, want null": ("flow", {"shift_terminal": 0.02}),
    "time_shift_type: cubic, want one of exponential linear": ("flow", {"time_shift_type": "cubic"}),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_change_results_is_refused(driver, tmp_path, text):
    mode, config = REFUSED[text]
    given(tmp_path, config, torch.float32)
    tokens = [256] if mode == "flow" else []
    done = run(driver, mode, tmp_path / "config.json", 5, *tokens, tmp_path / "in.safetensors", tmp_path / "out")
    assert done.returncode == 1 and text in done.stderr, done.stderr
