"""A pipeline of engines on a real Triton server: prompts to pictures, merged, and refused one by one."""

from __future__ import annotations

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from svdq_trt.cli import main
from tests.harness import tiny_pipelines
from tests.harness.builds import build, some_minutes
from tests.harness.lora_files import make_factors, write_peft
from tests.harness.triton_server import TritonServer, ask, picture_inputs

SIZE = {"width": 64, "height": 64, "steps": 1}


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """With this environment, which has torch and the other libraries of a pipeline."""
    repository = tmp_path_factory.mktemp("repository")
    words = ["triton", str(folder), "--repository", str(repository), "--name", "pictures", "--device", "cpu"]
    assert main([*words, "--dynamic-batching", "500000"]) == 0
    with TritonServer(repository, tmp_path_factory.mktemp("server"), ["pictures"], Path(sys.executable)) as running:
        yield running


@pytest.fixture(scope="module")
def pipe(folder):
    from svdq_trt.runtime.loading import load

    pipe = load(folder, runtime="onnx", onnx_device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(server, protocol="grpc", **given):
    return ask(server, protocol, "pictures", picture_inputs(**SIZE | given))["image"][0]


def own(pipe, prompt="a fox", seed=0, **options):
    import torch

    size = {"num_inference_steps": 1, "width": 64, "height": 64}
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **size | options).images[0])


def error(want, got):
    """Root of the mean squared difference of two pictures of 8 bits."""
    assert want.shape == got.shape and want.std() > 1, "a picture with something on it"
    return float(np.sqrt(np.mean((want.astype(float) - got) ** 2)))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_picture_is_that_of_the_loaded_pipeline(server, pipe, protocol):
    got = picture(server, protocol, negative="dogs", guidance=4.0, seed=3, height=128)
    assert got.dtype == np.uint8 and got.shape == (128, 64, 3)
    assert np.array_equal(got, own(pipe, seed=3, guidance_scale=4.0, negative_prompt="dogs", height=128))


BAD = {
    "steps": ({"steps": 0}, "steps: 0, want at least 1"),
    "too many steps": ({"steps": 10**6}, "steps: 1000000, want at most 1000"),
    "guidance": ({"guidance": float("nan")}, "guidance: nan, want a finite number"),
    "seed": ({"seed": -1}, "seed: -1, want 0 to"),
    "size": ({"width": 4096}, r"width: 4096, want 64 to 256. Build the engine with a wider --width"),
    "odd size": ({"width": 65}, "width: 65, want a positive multiple of"),
    "no size": ({"height": 0}, "height: 0, want a positive multiple of"),
    "long prompt": ({"prompt": "fox " * 40}, "prompt: 122 tokens, want at most 77"),
    "long negative": ({"negative": "fox " * 40}, "negative: 122 tokens, want at most 77"),
}


def test_requests_run_together_and_bad_ones_are_refused_alone(server, pipe):
    """All wait in one queue: each good one gets its own picture, each bad one its own sentence."""

    def refused(case):
        given, message = BAD[case]
        with pytest.raises(InferenceServerException, match=message):
            picture(server, **given)

    prompts = ["a fox", "an owl in snow", "a fox", "bees"]
    with ThreadPoolExecutor(16) as pool:
        got = [pool.submit(picture, server, prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
        bad = [pool.submit(refused, case) for case in BAD]
        for one in bad:
            one.result()
        pictures = [one.result() for one in got]
    wanted = [own(pipe, prompt, seed) for seed, prompt in enumerate(prompts)]
    for i, one in enumerate(pictures):
        errors = [error(want, one) for want in wanted]
        assert errors[i] < 8 < min(errors[:i] + errors[i + 1 :]), errors
    import tritonclient.grpc

    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        (stats,) = client.get_inference_statistics("pictures", as_json=True)["model_stats"]
    assert int(stats["execution_count"]) < int(stats["inference_stats"]["success"]["count"])  # some ran together


def test_what_is_no_request_for_a_picture(server):
    with pytest.raises(InferenceServerException, match="prompt: missing, want text"):
        ask(server, "grpc", "pictures", {k: v for k, v in picture_inputs(**SIZE).items() if k != "prompt"})
    with pytest.raises(InferenceServerException, match="prompt: bytes that are not UTF-8, want text"):
        ask(server, "grpc", "pictures", picture_inputs(**SIZE) | {"prompt": np.full((1, 3), 255, np.uint8)})
    two = {name: np.repeat(value, 2, axis=0) for name, value in picture_inputs(**SIZE).items()}
    with pytest.raises(InferenceServerException, match=r"a batch of 2, want one picture in a request\. Send"):
        ask(server, "grpc", "pictures", two)


def test_a_client_that_goes_away_harms_nobody(server, pipe):
    inputs = [
        {
            "name": name,
            "shape": list(value.shape),
            "datatype": {"uint8": "UINT8", "int32": "INT32"}[value.dtype.name],
            "data": value.flatten().tolist(),
        }
        for name, value in picture_inputs(**SIZE).items()
    ]
    gone = http.client.HTTPConnection(server.http)
    gone.request("POST", "/v2/models/pictures/infer", json.dumps({"inputs": inputs}))
    gone.close()
    assert error(own(pipe, seed=1), picture(server, seed=1)) < 8
    assert server.alive()


@some_minutes
def test_requests_name_their_lora(tmp_path):
    """Alone, merged with none: each gets the picture of its own LoRA. For sm_90, whose ONNX files are what runs."""
    from svdq_trt.models import get_model
    from svdq_trt.models.denoiser import attached
    from svdq_trt.runtime.loading import load

    tiny_pipelines.save_sdxl(tmp_path / "pipeline")
    words = ["--arch", "sm_90", "--no-check", "--pipeline", str(tmp_path / "pipeline"), "--lora-slots", "16"]
    done = build("sdxl-tiny", tmp_path, *words, "--height", "64", "--width", "64")
    assert done.returncode == 4, done.stderr
    engine, spec = tmp_path / "sdxl-tiny-sm_90", get_model("sdxl-tiny")
    layers = [member for group in spec.groups(spec.build()) for member in group.members]
    file = write_peft(tmp_path / "style.safetensors", make_factors(spec, layers, size=0.3))
    words = ["triton", str(engine), "--repository", str(tmp_path / "models"), "--name", "pictures", "--device", "cpu"]
    assert main([*words, "--dynamic-batching", "500000", "--lora", f"style={file}"]) == 0
    with TritonServer(tmp_path / "models", tmp_path / "server", ["pictures"], Path(sys.executable)) as running:

        def one(lora):
            return ask(running, "grpc", "pictures", picture_inputs(**SIZE), **({"lora": lora} if lora else {}))[
                "image"
            ][0]

        with ThreadPoolExecutor(2) as pool:
            plain, styled = pool.map(one, ("", "style:2"))
        with pytest.raises(InferenceServerException, match="'nobody', want one of style"):
            one("nobody")
    pipe = load(engine, runtime="onnx", onnx_device="cpu")
    assert np.array_equal(plain, own(pipe))
    (denoiser,) = attached(pipe).values()
    denoiser.runner.set_lora([(file, 2.0)])
    assert np.array_equal(styled, own(pipe)) and error(plain, styled) > 2
