"""Captioned scenes, the pipelines that learn them, and their pictures in every way."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import trained_pipeline
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from trained import captions, gallery, step_cache, teach, ways, words
from trained.pipelines import PIPELINES, SDXL, Flux
from trained.publish import PAGE, publish_pipelines
from trained.sheet import PROGRAM, STEP_CACHE

from svdq_trt.models import get_model


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_caption_says_what_is_drawn():
    two = [captions.PLACES.index("left of"), 0, 0, 0, 1, 4, 1]
    one = [captions.PLACES.index("in the middle"), 1, 3, 2, 0, 0, 0]
    assert captions.caption(two) == "a small red disc left of a large blue square"
    assert captions.caption(one) == "a large cyan bar in the middle"
    said = {word for scene in captions.rows(4096, rng=rng()).tolist() for word in captions.caption(scene).split()}
    assert said == set(captions.WORDS)


@pytest.mark.parametrize("ink", [False, True], ids=["plain", "ink"])
def test_pictures_are_read_as_they_were_drawn(ink):
    scene = captions.rows(48, rng=rng())
    pictures = captions.draw(scene, rng(1), ink)
    assert pictures.shape == (48, 3, captions.SIDE, captions.SIDE) and pictures.abs().max() <= 1
    assert torch.equal(pictures, captions.draw(scene, rng(1), ink))
    assert captions.read(pictures, scene).whole.mean() > 0.97
    other = captions.read(pictures.roll(1, 0), scene)
    assert other.whole.mean() < 0.1 and other.colours.mean() < 0.5
    assert not any(share.any() for share in captions.read(torch.zeros_like(pictures), scene))


def test_each_part_of_a_scene_is_read_by_itself():
    scene = captions.rows(64, rng=rng())
    pictures = captions.draw(scene, rng(1))
    for column, name in ((1, "sizes"), (2, "colours"), (3, "shapes")):
        asked = scene.clone()
        asked[:, column] = (asked[:, column] + 1) % captions.FIELDS[column]
        found = captions.read(pictures, asked)
        wrong = {n for n, share in found._asdict().items() if share.mean() < 0.9}
        assert wrong == {name, "whole"} and found.whole.sum() == 0
    alone = scene[scene[:, 0] >= len(captions.BETWEEN)]
    moved = alone.clone()
    moved[:, 0] = len(captions.BETWEEN) + (moved[:, 0] - len(captions.BETWEEN) + 1) % len(captions.BEHIND)
    found = captions.read(captions.draw(alone, rng(1)), moved)
    assert found.colours.all() and not found.whole.any()


def test_scenes_that_are_held_out_are_in_no_training():
    held, seen = (captions.drawn_from(512, held_out, seed=0) for held_out in (True, False))
    assert len(held) == len(seen) == 512
    assert not {*map(captions.caption, held.tolist())} & {*map(captions.caption, seen.tolist())}
    assert {captions.PLACES[scene[0]] for scene in held.tolist()} == set(captions.PLACES)


def test_a_word_of_the_captions_is_a_token():
    clip, t5 = words.clip_tokenizer(captions.WORDS), words.t5_tokenizer(captions.WORDS)
    for word in captions.WORDS:
        assert clip.tokenize(word) == [f"{word}</w>"] and t5.tokenize(word) == [f"\u2581{word}"]
    assert clip.tokenize("fox") == ["f", "o", "x</w>"], "others fall apart into letters"
    longest = max(map(captions.caption, captions.rows(4096, rng=rng()).tolist()), key=lambda text: len(text.split()))
    assert len(t5(longest).input_ids) <= words.T5_TOKENS


def parts(kind):
    """A pipeline with random weights, and its autoencoder."""
    torch.manual_seed(0)
    return kind.make(teach.autoencoder())


@pytest.mark.parametrize("kind", PIPELINES.values(), ids=list(PIPELINES))
def test_captions_are_encoded_as_by_the_pipeline(kind):
    pipe, texts = parts(kind), ["a small red disc above a large blue ring", ""]
    with torch.no_grad():
        text, pooled = kind.encode(pipe, kind.tokens(pipe, texts))
        asked = {"do_classifier_free_guidance": False} if kind.denoiser == "unet" else {}
        given = pipe.encode_prompt(texts, None, device="cpu", num_images_per_prompt=1, **asked, **kind.asked)
    assert torch.equal(text, given[0]) and torch.equal(
        pooled, next(v for v in given[1:] if v is not None and v.ndim == 2 and len(v) == 2)
    )


class Asking(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: a value that the host asks for, or a tensor of the host's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::lift_fresh"), (
            func
        )
        return func(*args, **(kwargs or {}))


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", PIPELINES.values(), ids=list(PIPELINES))
def test_a_step_of_training_asks_nothing_of_the_device(kind, dtype, monkeypatch):
    monkeypatch.setattr(captions, "SIDE", 64)
    pipe = parts(kind)
    loss = teach.loss_of_scenes(kind, pipe, teach.Effort(1, batch=2, lr=1, scenes=4), ink=False)
    loss()  # tables are made
    with Asking(), autocast(dtype):
        loss().backward()
    learning = (getattr(pipe, name) for name in (*kind.encoders, kind.denoiser))
    assert all(next(module.parameters()).grad.any() for module in learning), "text encoders learn with the denoiser"


def test_a_step_of_the_autoencoder_asks_nothing_of_the_device(monkeypatch):
    monkeypatch.setattr(captions, "SIDE", 32)
    vae = teach.autoencoder()
    loss = teach.loss_of_pictures(vae, teach.Effort(1, batch=2, lr=1))
    loss()
    with Asking(), autocast(torch.bfloat16):
        loss().backward()


class Perfect(torch.nn.Module):
    """A denoiser that knows the latents, and finds the noise in its input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *args, **kwargs):
        return (self.answer(*args, **kwargs),)


def test_sdxls_target_is_what_its_scheduler_steps_along():
    pipe, latents = parts(SDXL()), torch.randn(2, 4, 4, 4, generator=rng())

    def answer(x, t, text, **more):
        alpha2 = pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
        return alpha * (x - alpha * latents) / sigma - sigma * latents

    pipe.unet = Perfect(answer)
    tokens = SDXL().tokens(pipe, ["", ""])
    with torch.no_grad():
        assert SDXL().loss(pipe, latents, tokens) < 1e-4
    pipe.scheduler.set_timesteps(20)
    x = torch.randn(latents.shape, generator=rng(1)) * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        got = answer(pipe.scheduler.scale_model_input(x, t), t.long(), None)
        x = pipe.scheduler.step(got, t, x).prev_sample
    torch.testing.assert_close(x, latents, atol=1e-3, rtol=0)


def test_fluxs_target_is_what_its_scheduler_steps_along():
    pipe, latents = parts(Flux()), torch.randn(2, 4, 4, 4, generator=rng())
    packed = pipe._pack_latents(latents, *latents.shape)

    def answer(hidden_states, timestep, **more):
        return (hidden_states - packed) / timestep.reshape(-1, 1, 1)

    pipe.transformer = Perfect(answer)
    with torch.no_grad():
        assert Flux().loss(pipe, latents, Flux().tokens(pipe, ["", ""])) < 1e-4
    pipe.scheduler.set_timesteps(sigmas=[(8 - i) / 8 for i in range(8)])
    x = torch.randn(packed.shape, generator=rng(1))
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(answer(x, t / 1000), t, x).prev_sample
    torch.testing.assert_close(x, packed, atol=1e-4, rtol=0)


class Small(Flux):
    """Around flux1-tiny itself."""

    name, spec = "small", get_model("flux1-tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command leaves of a small pipeline at toy scale."""
    out = tmp_path_factory.mktemp("trained")
    options = ["--out", out, "--work", out, "--device", "cpu", "--mode", "f32", "--steps", 2, "--scenes", 4]
    options += ["--prompts", 2, "--sampler-steps", 2, "--preset", "fast", "--own-process"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "SIDE", 64)
        patch.setattr(gallery, "ARCHS", (90,))
        patch.setattr(teach, "LORA_RANK", 4)
        patch.setitem(PIPELINES, "small", Small())
        patch.setitem(trained_pipeline.EFFORTS, "small", teach.Effort(60, batch=4, lr=1e-3))
        for part in ("vae", "small"):
            patch.setattr(sys, "argv", ["", *map(str, options), "--part", part])
            assert trained_pipeline.main() == 0
        trained_pipeline.report(out, "small")
    return out


def test_what_is_trained_is_a_diffusers_folder_and_a_lora(made):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(made / "small", dtype=torch.bfloat16)
    assert type(pipe).__name__ == "FluxPipeline" and pipe.transformer.config.num_layers == 2
    record = json.loads((made / "small" / teach.RECORD).read_text())
    assert (record["steps"], record["batch"]) == (2, 4)
    lora = load_file(teach.lora_folder(made / "small") / ways.LORA_FILE)
    assert {t.dtype for t in lora.values()} == {torch.bfloat16} and all(4 in t.shape for t in lora.values())
    assert all(name.startswith("transformer.") for name in lora)


def test_pictures_of_every_way_sheet_and_page(made, tmp_path):
    results, pictures = json.loads((made / "small.json").read_text()), load_file(made / "small.safetensors")
    keys = ["as trained: 16 bit", "as trained: w4a8", "with the LoRA: 16 bit", "with the LoRA: w4a8"]
    assert [way["key"] for way in results["ways"]] == keys and set(pictures) == set(keys)
    assert all(p.shape == (2, 3, 64, 64) for p in pictures.values())
    for exact, quantized in zip(results["ways"][::2], results["ways"][1::2], strict=True):
        assert "psnr_db" not in exact and quantized["psnr_db"] > 20
    assert not torch.equal(pictures[keys[0]], pictures[keys[2]]), "the LoRA changes something"
    assert results["drawn"]["whole"] == 1
    with Image.open(made / "small.png") as drawn:
        assert drawn.width > drawn.height > 4 * 96
    page = tmp_path / PAGE
    page.parent.mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    page.write_text("<!-- small -->\n<!-- end -->\n")
    assert publish_pipelines(made, ["small", "sdxl-shapes"], tmp_path) == 0
    assert "| with the LoRA | w4a8 |" in page.read_text() and (tmp_path / "docs/evidence/small.png").exists()
    assert publish_pipelines(tmp_path, ["small"], tmp_path) == 1


def small_flux(folder, monkeypatch):
    """A FluxPipeline of random weights, for pictures of 64 x 64 in 3 steps, and two prompts."""
    monkeypatch.setattr(captions, "SIDE", 64)
    monkeypatch.setattr(step_cache, "STEPS", 3)
    pipe = parts(Small()).to(torch.bfloat16)
    pipe.save_pretrained(folder)
    return pipe, ["a small red disc at the top"] * 2


def test_thresholds_of_diffusers_step_cache(tmp_path, monkeypatch):
    """A cache that is never used makes the same pictures, one that always is computes the first step alone."""
    monkeypatch.setattr(step_cache, "DIFFUSERS", (1e-9, 1e9))
    found = dict(step_cache.in_torch(Small(), *small_flux(tmp_path, monkeypatch)))
    (exact, without), (never, all_steps), (always, one_step) = found.values()
    assert torch.equal(never, exact) and not torch.equal(always, exact)
    assert (without, all_steps, one_step) == (3, 3, 1), "each picture begins with an empty cache"


def test_thresholds_of_the_engines_step_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cache, "THRESHOLDS", (1e-9, 1e9))
    monkeypatch.setattr(step_cache, "DIFFUSERS", (1e9,))
    small_flux(tmp_path / Small.name, monkeypatch)
    step_cache.step_cache(Small(), tmp_path, tmp_path, count=2, steps=2, device="cpu", preset="fast")
    ways = json.loads((tmp_path / f"{Small.name}{STEP_CACHE}.json").read_text())["ways"]
    assert [way["computed"] for way in ways] == [3, 1, 3, 3, 1]
    assert [way["label"] for way in ways][:3] == ["16 bit", "16 bit, diffusers' cache, 1e+09", "w4a8"]
    none, never, always = ways[2:]
    assert "uncached_db" not in none and never["uncached_db"] > always["uncached_db"] > 0
    assert never["psnr_db"] == none["psnr_db"] > 20


def published(tmp_path, name, rows, **results):
    """The page after the results of a pipeline's later step are published."""
    ways = [{"label": label, "right": {"whole": 0.5}, **figures} for label, figures in rows]
    results |= {"name": name, "prompts": ["a"] * 8, "device": "CPU", "ways": ways}
    (tmp_path / f"{name}.json").write_text(json.dumps(results))
    (tmp_path / f"{name}.png").touch()
    page = tmp_path / PAGE
    page.parent.mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    page.write_text(f"<!-- {name} -->\n<!-- end -->\n")
    assert publish_pipelines(tmp_path, ["small"], tmp_path) == 0
    return page.read_text()


def test_the_page_of_the_step_cache(tmp_path):
    ways = [("16 bit", {}), ("w4a8", {"psnr_db": 50.0}), ("w4a8, 0.1", {"psnr_db": 40.0, "uncached_db": 41.0})]
    rows = [(label, {"computed": 14.0, **figures}) for label, figures in ways]
    page = published(tmp_path, f"small{STEP_CACHE}", rows, steps=28)
    assert "| w4a8, 0.1 | 14.0 of 28 | 2.00x | 40.0 | 41.0 | 50 % |" in page


@pytest.mark.parametrize("equal,said", [(8, "equal"), (3, "61.2 dB, 3 of 8 equal")])
def test_the_page_of_the_program_in_cpp(tmp_path, equal, said):
    figures = {"psnr_db": 50.0, "ssim": 0.99}
    ways = [("16 bit", {}), ("Python", figures), ("C++", figures | {"python_db": 61.2, "equal": equal})]
    page = published(tmp_path, f"small{PROGRAM}", ways, steps=20)
    assert "8 pictures in 20 steps on CPU" in page and "| 16 bit |  |  |  | 50 % |" in page
    assert "| Python | 50.0 | 0.990 |  | 50 % |" in page and f"| C++ | 50.0 | 0.990 | {said} | 50 % |" in page


def test_engines_of_the_pipeline_are_found(tmp_path, monkeypatch):
    entries = {"a": ("small", (), "w4a8"), "b": ("small", ("ink",), "int4"), "c": ("other", (), "int4")}
    for name in entries:
        (tmp_path / name).mkdir()
        (tmp_path / name / "pipeline.json").touch()
    (tmp_path / "small-shared").mkdir()

    def read(folder):
        model, loras, fmt = entries[folder.name]
        return SimpleNamespace(model=model, loras=loras, format=fmt)

    monkeypatch.setattr(ways.manifest, "read", read)
    monkeypatch.setattr(ways, "choose_runtime", lambda folder, data, asked: (folder.name == "a", ""))
    asked = SimpleNamespace(spec=SimpleNamespace(name="small"), artifacts={})
    found = [(way.section, way.label) for way in ways.ways(asked, tmp_path)]
    assert (ways.PLAIN, "w4a8 in TensorRT") in found and found[-1] == (ways.STYLED, "int4 in ONNX Runtime")
    assert len(found) == 5 and [section for section, _ in found] == [ways.PLAIN] * 2 + [ways.STYLED] * 3


def test_the_autoencoder_comes_first_and_a_pipeline_is_tried_in_slower_modes(tmp_path, monkeypatch):
    started = []

    def start(args, name, mode):
        started.append((name, mode))
        return subprocess.Popen(["false" if mode == "bf16-graph" and name == "sdxl-shapes" else "true"])

    monkeypatch.setattr(trained_pipeline, "start", start)
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path), "--stage", "train"])
    assert trained_pipeline.main() == 0
    assert started[0] == ("vae", "bf16-graph")
    assert sorted(started[1:]) == [
        ("flux1-shapes", "tf32-graph"),
        ("sdxl-shapes", "bf16-graph"),
        ("sdxl-shapes", "tf32-graph"),
    ]
    monkeypatch.setattr(trained_pipeline, "start", lambda *args: subprocess.Popen(["false"]))
    started.clear()
    assert trained_pipeline.main() == 1 and not started, "without an autoencoder there is nothing to train around"
