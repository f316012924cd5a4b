"""text_to_image of examples/cpp against svdq_trt.pipeline.load: the same latents and pictures bit for bit.

The engines of both are the tiny pipelines' modules in torch; the program asks for a run of one in a line of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.artifact import manifest
from svdq_trt.runtime import loading
from tests.cpu.cpp.conftest import run
from tests.harness import module_engines
from tests.harness.gpu_arithmetic import AsOnGpu
from tests.harness.manifests import change_manifest, file_entry
from tests.harness.tiny_pipelines import random

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
TOKENS = 16  # of flux1-tiny's T5


def program(driver: Path, runners, exchange: Path, *words: object) -> tuple[int, str, str]:
    """Exit code, the last line and stderr of text_to_image, whose engines `runners` are by their folders."""
    exchange.mkdir(exist_ok=True)
    command = [str(driver), "picture", str(exchange), *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        last = ""
        for line in process.stdout:
            asked, _, engine = line.strip().partition(" ")
            if asked != "run":
                last = line.strip()
                continue
            outputs = runners[Path(engine)].run(load_file(exchange / "in.safetensors"))
            save_file({name: value.contiguous() for name, value in outputs.items()}, exchange / "out.safetensors")
            process.stdin.write("done\n")
            process.stdin.flush()
        said = process.stderr.read()
    return process.returncode, last, said


@pytest.fixture
def loaded(monkeypatch):
    """`loaded(folder, runners)`: the pipeline of Python, whose engines compute as they do for the program."""

    def load(folder, runners):
        def outside(runner):
            def run_module(inputs, run=runner.run):
                with torch._C.DisableTorchFunction():
                    return run(inputs)

            runner.run = run_module
            return runner

        found = {at: outside(runner) for at, runner in runners.items()}
        monkeypatch.setattr(loading.Opening, "open", lambda self, at, in_tensorrt, **_: found[at])
        pipe = loading.load(folder, runtime="onnx")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def compare(driver, tmp_path, pipe, runners, noise, words, **call):
    """The program's latents and picture, of the same noise, with those of the pipeline's call."""
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    out, latents = tmp_path / "out.png", tmp_path / "latents.safetensors"
    files = ["--noise", tmp_path / "noise.safetensors", "--latents", latents, "--out", out]
    folder = tmp_path / "engines"
    code, last, said = program(driver, runners, tmp_path / "exchange", folder, *words, *files)
    assert (code, last) == (0, str(out)), said
    with AsOnGpu(scalars_there=type(pipe).__name__ == "FluxPipeline"):
        want = pipe(latents=noise, output_type="latent", **call).images
        picture = pipe(latents=noise, **call).images[0]
    got = load_file(latents)["latents"]
    assert got.dtype == want.dtype and torch.equal(got, want), (got - want).abs().max()
    assert want.float().std() > 0.1 and np.asarray(picture).std() > 1
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(picture))


def sdxl_scheduler(**config):
    from diffusers import EulerDiscreteScheduler

    own = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return EulerDiscreteScheduler(**own | config)


SDXL = {
    "guided": ({"negative_prompt": "an owl"}, 4.0, {"timestep_spacing": "leading", "steps_offset": 1}),
    "no negative": ({}, 5.5, {}),
    "unguided": ({}, 1.0, {"timestep_spacing": "trailing"}),
    "velocity": ({"negative_prompt": ""}, 3.0, {"prediction_type": "v_prediction"}),
}


@pytest.mark.parametrize("name", SDXL)
def test_sdxl(driver, tmp_path, loaded, name):
    negative, guidance, config = SDXL[name]
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path, scheduler=sdxl_scheduler(**config))
    words = ["--prompt", "a Fox", "--steps", 3, "--guidance", guidance, "--width", 128, "--height", 64]
    words += [word for value in negative.values() for word in ("--negative", value)]
    call = {"prompt": "a Fox", "num_inference_steps": 3, "guidance_scale": guidance, "width": 128, "height": 64}
    noise = random(1, 4, 8, 16).half()
    compare(driver, tmp_path, loaded(out, runners), runners, noise, words, **call | negative)


@pytest.mark.parametrize("dynamic", [True, False])
def test_flux(driver, tmp_path, loaded, dynamic):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic, shift=3.0 if dynamic else 1.0)
    _, out, runners = module_engines.tiny("FluxPipeline", tmp_path, scheduler=scheduler)
    words = ["--prompt", "a Fox", "--steps", 3, "--guidance", 2.5, "--width", 96, "--height", 64]
    call = {"prompt": "a Fox", "num_inference_steps": 3, "guidance_scale": 2.5, "width": 96, "height": 64}
    noise = random(1, 4 * 6, 16).bfloat16()
    compare(driver, tmp_path, loaded(out, runners), runners, noise, words, max_sequence_length=TOKENS, **call)


def change_input(folder, name, **bounds):
    """Change the range of an engine's input in its manifest."""
    inputs = manifest.to_json(manifest.read(folder))["inputs"]
    (entry,) = (entry for entry in inputs if entry["name"] == name)
    entry["shape"] |= bounds
    change_manifest(folder, inputs=inputs)


def picture(driver, runners, folder, *words):
    """A picture of one step, as an array."""
    from PIL import Image

    out = folder.parent / "out.png"
    asked = ["--prompt", "a fox", "--steps", 1, "--out", out, *words]
    code, _, said = program(driver, runners, folder.parent / "exchange", folder, *asked)
    assert code == 0, said
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_the_size_is_what_the_denoiser_is_tuned_for(driver, tmp_path, kind):
    """The autoencoder's engine may be tuned for a tile."""
    _, out, runners = module_engines.tiny(kind, tmp_path)
    change_input(out / "vae_decoder", "latent", opt=[1, 4, 8, 8])
    assert picture(driver, runners, out).shape == (64, 128, 3)


def test_the_size_of_flux_is_square_or_what_its_build_was_given(driver, tmp_path):
    """A profile of tokens has no sides."""
    _, out, runners = module_engines.tiny("FluxPipeline", tmp_path)
    side = {"min": 64, "opt": 128, "max": 128}
    for config, tokens, size in (
        ({}, 16, (64, 64)),
        ({"height": side}, 32, (128, 64)),
        ({"width": side}, 32, (64, 128)),
    ):
        change_input(out, "hidden_states", opt=[1, tokens, 16])
        change_manifest(out, config=config)
        assert picture(driver, runners, out).shape[:2] == size


def test_pictures_larger_than_a_tile_are_refused(driver, tmp_path):
    for kind in ("StableDiffusionXLPipeline", "FluxPipeline"):
        out = module_engines.tiny(kind, tmp_path / kind)[1]
        change_input(out / "vae_decoder", "latent", opt=[1, 4, 8, 8], max=[1, 4, 12, 12])
        want = "want at most 96, a tile of the autoencoder's engine. Use svdq-trt run, which works by tiles, or build"
        refused(driver, out, f"width: 128, {want} with a larger --vae-tile.")
        refused(driver, out, f"height: 128, {want}", "--height", 128, "--width", 64)
    refused(driver, out, "input 'latent': shape [1, 4, 6, 12], want [", "--height", 48, "--width", 96)


def test_engines_are_opened_side_by_side(driver, tmp_path):
    """Each waits for the others; of the errors the first by the order of the parts is shown, not by time."""
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    words = ["--prompt", "a fox", "--steps", 1, "--out", tmp_path / "out.png"]
    code, _, said = program(driver, runners, tmp_path / "exchange", out, *words)
    seconds = r"\d+\.\d\d s"
    parts = ", ".join(f"{part} {seconds}" for part in ("text_encoder", "text_encoder_2", "unet", "vae_decoder"))
    assert code == 0 and re.fullmatch(f"engines opened in {seconds}: {parts}\n", said), said
    for part, milliseconds in (("text_encoder_2", 300), ("vae_decoder", 0)):
        (tmp_path / "exchange" / f"refused-{part}").write_text(str(milliseconds))
    refused(driver, out, "text_encoder_2: refused, want another.")


def test_noise_is_the_programs_own(driver, tmp_path):
    """The same of the same seed."""
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    pictures = [picture(driver, runners, out, "--seed", seed) for seed in (3, 3, 4)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny pipelines' folders by their classes."""
    root = tmp_path_factory.mktemp("folders")
    kinds = ("StableDiffusionXLPipeline", "FluxPipeline", "PixArtSigmaPipeline")
    return {kind: module_engines.tiny(kind, root / kind)[1] for kind in kinds}


def refused(driver, folder, text, *words, code=1):
    out = folder.parent / "refused.png"
    asked = ["--prompt", "a fox", "--out", out, *words]
    got, _, said = program(driver, {}, folder.parent / "exchange", folder, *asked)
    assert got == code and text in said and said.startswith("text_to_image: "), said
    assert not out.exists()


ARGUMENTS = {
    "--steps 0, want 1 to": ["--steps", 0],
    "--guidance high, want a finite number": ["--guidance", "high"],
    "--guidance nan, want a finite number": ["--guidance", "nan"],
    "--seed 4611686018427387905, want 0 to 4611686018427387904": ["--seed", 2**62 + 1],
    "unknown option --batch": ["--batch", 2],
    "2 files, want 1": ["another"],
}


@pytest.mark.parametrize("text", ARGUMENTS)
def test_bad_arguments_are_exit_code_2(driver, folders, text):
    refused(driver, folders["FluxPipeline"], text, *ARGUMENTS[text], code=2)


def test_what_must_be_given(driver, folders):
    for words, text in ((["--out", "x"], "no --prompt"), (["--prompt", "x"], "no --out")):
        done = run(driver, "picture", "/none", folders["FluxPipeline"], *words)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    done = run(driver, "picture", "/none", "--help")
    assert done.returncode == 0 and "PyTorch makes other numbers of it" in done.stdout


REFUSED = {
    "width: 100, want a positive multiple of 8": ("StableDiffusionXLPipeline", ["--width", 100]),
    "height: 72, want a positive multiple of 16": ("FluxPipeline", ["--height", 72]),
    "input 'hidden_states': shape [1, 8, 16], want": ("FluxPipeline", ["--height", 16]),
    "input 'sample': shape [2, 4, 2, 16], want": ("StableDiffusionXLPipeline", ["--height", 16]),
    "prompt: 102 tokens, want at most 77": ("StableDiffusionXLPipeline", ["--prompt", "a " * 100]),
    "negative: 102 tokens, want at most 77": ("StableDiffusionXLPipeline", ["--negative", "a " * 100]),
    "prompt: 102 tokens, want at most 77.": ("FluxPipeline", ["--prompt", "a " * 100]),
    "negative: given to a FluxPipeline, want no negative prompt: it has no effect": (
        "FluxPipeline",
        ["--negative", ""],
    ),
    "steps: 1001, want at most 1000": ("FluxPipeline", ["--steps", 1001]),
    "a PixArtSigmaPipeline, want a StableDiffusionXLPipeline or a FluxPipeline": ("PixArtSigmaPipeline", []),
    "none.safetensors: cannot be read": ("FluxPipeline", ["--noise", "/tmp/none.safetensors"]),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_engine_can_do_is_refused_before_one_is_opened(driver, folders, text):
    kind, words = REFUSED[text]
    refused(driver, folders[kind], text, *words)


def test_noise_of_another_size_is_refused(driver, folders, tmp_path):
    for tensors, text in (
        ({"latents": random(1, 4, 8, 8)}, "[1, 4, 8, 8], want [1, 4, 8, 16]"),
        ({"noise": random(1)}, "no tensor 'latents'"),
        ({"latents": torch.zeros(1, 4, 8, 16, dtype=torch.int64)}, "I64, want one of F32 F16 BF16"),
    ):
        save_file(tensors, tmp_path / "noise.safetensors")
        refused(driver, folders["StableDiffusionXLPipeline"], text, "--noise", tmp_path / "noise.safetensors")


def test_folders_that_do_not_belong_together_are_refused(driver, folders, tmp_path):
    folder = shutil.copytree(folders["FluxPipeline"], tmp_path / "engines")

    def change(file, text, **values):
        content = (folder / file).read_text()
        (folder / file).write_text(json.dumps(json.loads(content) | values))
        refused(driver, folder, text)
        (folder / file).write_text(content)

    again = "Build it again: svdq-trt build --pipeline."
    change("scheduler/scheduler_config.json", f"bytes. {again}", shift=2.0)
    change("text_encoder/manifest.json", "another version, want 1", version=2)
    onnx = {"file": "model.onnx", "bytes": 1, "sha256": "0" * 64}
    change(
        "text_encoder/manifest.json", f"another engine than pipeline.json's, want its text_encoder. {again}", onnx=onnx
    )
    data = json.loads((folder / "pipeline.json").read_text())
    change("pipeline.json", "another version, want 1", version=2)
    change("pipeline.json", "StableDiffusionXLPipeline, want FluxPipeline", pipeline="StableDiffusionXLPipeline")
    change("pipeline.json", "FluxPipeline of", engines={"transformer": data["engines"]["transformer"]})
    outside = {**data["engines"], "vae_decoder": data["engines"]["vae_decoder"] | {"folder": "../vae"}}
    change("pipeline.json", "folder '../vae', want a name", engines=outside)
    for name in ("../x", "/etc/passwd", "a/../../x", ""):
        listed = [*data["files"], {"file": name, "bytes": 1, "sha256": "0" * 64}]
        change("pipeline.json", f"'{name}', want a path in the folder", files=listed)
    missing = [entry for entry in data["files"] if entry["file"] != "tokenizer/tokenizer.json"]
    change("pipeline.json", "no tokenizer/vocab.json", files=missing)
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
    change(
        "manifest.json",
        "an input 'controlnet_block_samples_0'",
        inputs=[*inputs, inputs[0] | {"name": "controlnet_block_samples_0"}],
    )
    change("manifest.json", "LoRA slots", lora_slots={"file": "lora.safetensors"})
    index = folder / "model_index.json"
    content = index.read_text()
    index.write_text(json.dumps(json.loads(content) | {"image_encoder": ["transformers", "CLIPVisionModel"]}))
    entry = next(entry for entry in data["files"] if entry["file"] == "model_index.json")
    others = [other for other in data["files"] if other != entry]
    listed = [*others, file_entry(index) | {"file": "model_index.json"}]
    change("pipeline.json", "an unknown image_encoder, want the components of a FluxPipeline", files=listed)
    index.write_text(content)
    words = folder / "tokenizer_2" / "tokenizer.json"
    content = bytearray(words.read_bytes())
    content[len(content) // 2] ^= 1
    words.write_bytes(content)
    refused(driver, folder, "tokenizer.json: another SHA-256 than the manifest's, want ")
    words.unlink()
    refused(driver, folder, "tokenizer.json: missing, want")
    (folder / "pipeline.json").unlink()
    refused(driver, folder, "an engine without pipeline.json")


def test_another_scheduler_is_refused(driver, tmp_path):
    from diffusers import DPMSolverMultistepScheduler

    _, out, _ = module_engines.tiny("StableDiffusionXLPipeline", tmp_path, scheduler=DPMSolverMultistepScheduler())
    refused(driver, out, "scheduler: a DPMSolverMultistepScheduler, want a EulerDiscreteScheduler")
