"""A folder of engines as a diffusers pipeline, against diffusers' own; torch modules stand in for the engines."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from svdq_trt.artifact import pipeline_file
from svdq_trt.artifact.pipeline_file import PipelineFile
from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError, UsageError
from svdq_trt.cli.run import _described
from svdq_trt.cli.running import weight_budgets
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.pipelines import PipelineFolder
from svdq_trt.runtime import engines, loading
from svdq_trt.runtime.generate import generate, rows
from svdq_trt.runtime.request import Request
from tests.harness import module_engines, tiny_pipelines
from tests.harness.manifests import change_manifest, file_entry, write_manifest

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")


def tiny(name, tmp_path, monkeypatch):
    """Diffusers' own pipeline, and the folder of the same models as engines."""
    monkeypatch.setitem(MODELS, "klein", module_engines.klein())
    own, out, runners = module_engines.tiny(name, tmp_path)
    monkeypatch.setattr(loading.Opening, "open", lambda self, folder, in_tensorrt, **of_session: runners[folder])
    return own, out


def psnr(want, got):
    """Of pictures of 8 bits, in dB."""
    want, got = (np.asarray(one, dtype=np.float64) for one in (want, got))
    return float(10 * np.log10(255**2 / max(np.mean((want - got) ** 2), 1e-9)))


@pytest.mark.parametrize("name", module_engines.KINDS)
def test_pictures_are_those_of_diffusers_own_pipeline(name, tmp_path, monkeypatch):
    own, out = tiny(name, tmp_path, monkeypatch)
    pipe = loading.load(out, runtime="onnx")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is type(own) and not [
        p for m in pipe.components.values() for p in getattr(m, "parameters", list)()
    ]
    options = {} if "Flux" in name else {"negative": "owls"}
    asked = {"width": 64, "height": 128, "steps": 2, "guidance": 4.0}
    (got,), times = generate(pipe, Request("a fox", seed=3, **options, **asked))
    twice = ("ChromaPipeline", "Flux2KleinPipeline", "QwenImagePipeline")
    calls = 2 if name in twice else 1  # with guidance, in a step
    assert times.steps == 2 and times.runs["steps"] == 2 * calls and times.runs["VAE"] == 1 and times.runs["text"] >= 1
    assert rows(pipe, Request("", guidance=4.0)) == 2 / calls - (name in ("FluxPipeline", "Flux2Pipeline"))
    assert (" 2 steps (4 runs) " in _described(times)) == (calls == 2)
    model, _, told = module_engines.KINDS[name]
    call = {"width": 64, "height": 128, "num_inference_steps": 2, get_model(model).guidance: 4.0}
    call |= {"negative_prompt": "owls"} if options else {}
    call |= told
    want, other = (own(prompt="a fox", generator=torch.Generator().manual_seed(s), **call).images[0] for s in (3, 4))
    figures = {"same": psnr(want, got), "another seed": psnr(want, other), "spread": float(np.asarray(want).std())}
    print(figures)
    assert figures["spread"] > 1 and figures["same"] > 45 > 25 > figures["another seed"], figures


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline", "ZImagePipeline", "QwenImagePipeline"])
def test_a_picture_changes_as_in_diffusers_own_pipeline(name, masked, tmp_path, monkeypatch):
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    own, out = tiny(name, tmp_path, monkeypatch)
    tiny_pipelines.picture(64, 64).save(tmp_path / "fox.png")
    tiny_pipelines.picture(64, 64, mask=True).save(tmp_path / "mask.png")
    asked = {"width": 128, "height": 64, "steps": 4, "guidance": 4.0, "seed": 3}
    asked |= {"mask": tmp_path / "mask.png"} if masked else {}
    pipe = loading.load(out, runtime="onnx")
    (got,), times = generate(pipe, Request("a fox", image=tmp_path / "fox.png", strength=0.5, **asked))
    assert times.steps == 2 and got.size == (128, 64)
    call = {"image": tiny_pipelines.picture(64, 64).resize((128, 64)), "strength": 0.5, "num_inference_steps": 4}
    call |= {} if name == "StableDiffusionXLPipeline" and not masked else {"width": 128, "height": 64}
    call |= module_engines.KINDS[name][2]
    call |= {"mask_image": tiny_pipelines.picture(64, 64, mask=True).resize((128, 64))} if masked else {}
    own = (AutoPipelineForInpainting if masked else AutoPipelineForImage2Image).from_pipe(own)
    spec = get_model(module_engines.KINDS[name][0])
    call |= spec.asked | {spec.guidance: 4.0}
    want, other = (own("a fox", generator=torch.Generator().manual_seed(s), **call).images[0] for s in (3, 4))
    figures = {"same": psnr(want, got), "another seed": psnr(want, other)}
    print(figures)
    assert figures["same"] > 40 > 30 > figures["another seed"], figures


def test_a_strength_of_less_than_a_step(tmp_path, monkeypatch):
    """Stable Diffusion XL then has no step to run; FLUX.1 runs one."""
    asked = {"image": tmp_path / "fox.png", "width": 64, "height": 64}
    for name in ("fox", "mask"):
        tiny_pipelines.picture(64, 64, mask=name == "mask").save(tmp_path / f"{name}.png")
    pipe = loading.load(tiny("StableDiffusionXLPipeline", tmp_path / "sdxl", monkeypatch)[1], runtime="onnx")
    for given, got in (
        ({"steps": 2, "strength": 0.2}, "0.2 of 2 steps"),
        ({"steps": 3}, "0.3 of 3 steps"),
        ({"steps": 2, "strength": 0.2, "mask": tmp_path / "mask.png"}, "0.2 of 2 steps"),
    ):
        with pytest.raises(UsageError, match=f"strength: {got}, want one step at least"):
            generate(pipe, Request("a fox", **asked, **given))
    pipe = loading.load(tiny("FluxPipeline", tmp_path / "flux", monkeypatch)[1], runtime="onnx")
    assert generate(pipe, Request("a fox", steps=2, strength=0.2, **asked))[1].runs["steps"] == 1


def test_steps_that_a_step_cache_skips_are_counted(tmp_path, monkeypatch):
    pipe = loading.load(tiny("PixArtSigmaPipeline", tmp_path, monkeypatch)[1], runtime="onnx")
    session, told = pipe.transformer.runner, []
    whole = session.run

    def run(inputs, cache):
        session.skipped += len(told) > 1
        told.append(cache)
        return whole(inputs)

    session.step_cache, session.skipped, session.run = 0.1, 7, run
    session.reset = lambda: told.append("reset")
    _, times = generate(pipe, Request("a fox", steps=3, width=64, height=64))
    assert told == ["reset", *[("", 0, ())] * 3, "reset"]
    assert (times.steps, times.skipped) == (3, 2) and " 3 steps (1 computed) " in _described(times)


def test_what_has_no_effect_is_refused(tmp_path, monkeypatch):
    pipe = loading.load(tiny("FluxPipeline", tmp_path, monkeypatch)[1], runtime="onnx")
    with pytest.raises(UnsupportedError, match="negative: given to a FluxPipeline, want no negative prompt"):
        generate(pipe, Request("a fox", negative="dogs"))
    with pytest.raises(UsageError, match="mask: given alone, want an image with it"):
        Request("a fox", mask=tmp_path / "mask.png")
    (tmp_path / "fox.png").write_text("no picture")
    with pytest.raises(ArtifactError, match=r"fox\.png: cannot be read \(.*\), want a picture"):
        generate(pipe, Request("a fox", image=tmp_path / "fox.png"))


def test_engines_open_side_by_side_while_libraries_are_imported(tmp_path, monkeypatch):
    """Nobody goes on before all four engines are being opened and the main thread is at diffusers' class."""
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    together, check, opened = threading.Barrier(5), PipelineFolder.check, []

    def open_one(self, folder, in_tensorrt, **of_session):
        opened.append(folder.name)
        together.wait(timeout=60)
        return runners[folder]

    monkeypatch.setattr(loading.Opening, "open", open_one)
    monkeypatch.setattr(PipelineFolder, "check", lambda self: (together.wait(timeout=60), check(self)))
    pipe = loading.load(out, runtime="onnx")
    assert sorted(opened) == [out.name, "text_encoder", "text_encoder_2", "vae_decoder"]
    runners[out / "text_encoder_2"].seconds = {"check": 2.0, "load": 1.0}
    assert loading.slowest_opening(pipe) == ("text_encoder_2", {"check": 2.0, "load": 1.0})


def test_engines_are_being_opened_before_torch_is_imported(tmp_path):
    """In a process of its own, whose import of torch waits for all four."""
    _, out, _ = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    code = f"""if True:
        import builtins, sys, threading
        from svdq_trt.pipeline import load
        from svdq_trt.runtime.choice import Opening
        together, ordinary, started = threading.Barrier(5), builtins.__import__, []
        def slow(name, *more, **named):
            if name == "torch" and not started:
                started.append(name)
                together.wait(timeout=60)
            return ordinary(name, *more, **named)
        def refuse(self, folder, *_, **__):
            print(f"{{folder.name}} {{'torch' in sys.modules}}\\n", end="", flush=True)
            together.wait(timeout=60)
            raise OSError(folder.name)
        builtins.__import__, Opening.open = slow, refuse
        load({str(out)!r}, runtime="onnx")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    opened = [f"{name} False" for name in (out.name, "text_encoder", "text_encoder_2", "vae_decoder")]
    assert sorted(done.stdout.splitlines()) == sorted(opened) and done.stderr.endswith(f"OSError: {out.name}\n"), done


def test_an_engine_that_does_not_open_closes_the_others(tmp_path, monkeypatch):
    """Two do not open, and the second of them is known first; then the others open."""
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    known = threading.Event()

    def open_one(self, folder, in_tensorrt, **of_session):
        if folder.name == "vae_decoder":
            known.set()
        assert known.wait(timeout=60)
        if folder.name in ("text_encoder", "vae_decoder"):
            raise ArtifactError(folder.name, "damaged", "whole")
        return runners[folder]

    monkeypatch.setattr(loading.Opening, "open", open_one)
    with pytest.raises(ArtifactError, match=r"^text_encoder: damaged"):
        loading.load(out, runtime="onnx")
    assert {folder.name for folder, runner in runners.items() if runner.closed} == {out.name, "text_encoder_2"}


def test_an_interrupt_closes_what_opens_after_it(tmp_path, monkeypatch):
    _, out, runners = module_engines.tiny("StableDiffusionXLPipeline", tmp_path)
    over = threading.Event()

    def open_one(self, folder, in_tensorrt, **of_session):
        assert over.wait(timeout=60)
        return runners[folder]

    def interrupt(self):
        over.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(loading.Opening, "open", open_one)
    monkeypatch.setattr(PipelineFolder, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loading.load(out, runtime="onnx")
    assert {folder.name for folder, runner in runners.items() if not runner.closed} == {"vae_encoder"}


def streaming(folder):
    """Say that an engine was built with --weight-streaming."""
    change_manifest(folder, plan={"file": "model.plan", "bytes": 4, "sha256": "", "weight_streaming": True})


def test_weight_budgets_are_of_the_engines_that_they_name(tmp_path, monkeypatch):
    _, out, runners = module_engines.tiny("PixArtSigmaPipeline", tmp_path)
    given = {}

    def open_one(self, folder, in_tensorrt, *, weight_budget, **_):
        given[folder.name] = weight_budget
        return runners[folder]

    monkeypatch.setattr(loading.Opening, "open", open_one)
    monkeypatch.setattr(engines, "choose_runtime", lambda *_: (True, ""))
    for folder in (out, out / "text_encoder", out / "vae_encoder"):
        streaming(folder)
    texts = ["3GB", "text_encoder=0", "vae_encoder=1kB"]
    pipe = loading.load(out, weight_budget=weight_budgets(texts, out))
    assert given == {out.name: 3_000_000_000, "text_encoder": 0, "vae_decoder": None}
    pipe.vae.encode(torch.zeros(1, 3, 64, 64))
    assert given["vae_encoder"] == 1000
    given.clear()
    loading.load(out, weight_budget=7)
    assert given == {out.name: 7, "text_encoder": None, "vae_decoder": None}


@pytest.mark.parametrize(
    "texts,runtime,error,message",
    [
        (["0"], "onnx", UsageError, "weight_budget of transformer: an engine that runs in ONNX Runtime, want one that"),
        (["0", "unet=0"], "", UsageError, "weight_budget of unet: no such engine, want one of transformer, text_enc"),
        (["vae_encoder=0"], "", UnsupportedError, "weight_budget of vae_encoder: an engine that was built without --w"),
        (["transformer=0", "1GB"], "", UsageError, "--weight-budget: two of transformer, want one of an engine"),
        (["transformer=much"], "", UsageError, "--weight-budget: 'much', want a number of bytes"),
    ],
)
def test_weight_budgets_are_refused_before_an_engine_is_opened(texts, runtime, error, message, tmp_path, monkeypatch):
    _, out, _ = module_engines.tiny("PixArtSigmaPipeline", tmp_path)
    streaming(out)
    monkeypatch.setattr(loading.Opening, "open", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr(engines, "choose_runtime", lambda *_: (runtime != "onnx", ""))
    with pytest.raises(error, match=message):
        loading.load(out, weight_budget=weight_budgets(texts, out))


@pytest.mark.parametrize(
    "name", ["ZImagePipeline", "Flux2Pipeline", "Flux2KleinPipeline", "SanaPipeline", "QwenImagePipeline"]
)
def test_requests_of_different_prompts_run_together(name, tmp_path, monkeypatch):
    """As they do in Triton; each picture is the one of its request alone."""
    pipe = loading.load(tiny(name, tmp_path, monkeypatch)[1], runtime="onnx")
    asked = [Request(text, seed=i, steps=1, guidance=4.0, width=64, height=64) for i, text in enumerate(("a fox", "b"))]
    both, times = generate(pipe, *asked)
    texts = 1 if name == "Flux2Pipeline" else 2  # prompts, and what guidance keeps away from
    assert times.steps == 1 and times.runs["text"] == texts
    for request, picture in zip(asked, both, strict=True):
        (alone,), _ = generate(pipe, request)
        assert psnr(alone, picture) > 40
    with pytest.raises(ShapeError, match=r"prompt: \d+ tokens, want at most \d+"):
        generate(pipe, Request("fox " * 40))


def test_several_pictures_of_prompts_that_run_together(tmp_path, monkeypatch):
    """SanaPipeline's own masks then are another prompt's: findings/diffusers_masks_in_another_order.sh."""
    pipe = loading.load(tiny("SanaPipeline", tmp_path, monkeypatch)[1], runtime="onnx")
    sizes = {"steps": 1, "guidance": 1.0, "width": 64, "height": 64, "batch": 2}
    asked = [Request("a fox in the snow at night", seed=1, **sizes), Request("b", seed=5, **sizes)]
    together, _ = generate(pipe, *asked)
    alone = [picture for request in asked for picture in generate(pipe, request)[0]]
    assert len(together) == 4 and min(map(psnr, alone, together)) > 40 > 25 > psnr(alone[0], alone[2])


def test_what_klein_does_not_have_is_refused(tmp_path, monkeypatch):
    _, out = tiny("Flux2KleinPipeline", tmp_path, monkeypatch)
    tiny_pipelines.picture(64, 64).save(tmp_path / "fox.png")
    pipe = loading.load(out, runtime="onnx")
    with pytest.raises(UnsupportedError, match="image: given to a Flux2KleinPipeline, want a pipeline of which"):
        generate(pipe, Request("a fox", image=tmp_path / "fox.png"))
    (out / "tokenizer" / "chat_template.jinja").unlink()
    data = pipeline_file.read(out)
    files = tuple(file for file in data.files if not file.file.endswith("chat_template.jinja"))
    pipeline_file.write(out, PipelineFile(pipeline=data.pipeline, engines=data.engines, files=files))
    with pytest.raises(ArtifactError, match="tokenizer: no chat template, want that of a Flux2KleinPipeline"):
        loading.load(out, runtime="onnx")


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch):
    _, out = tiny("PixArtSigmaPipeline", tmp_path, monkeypatch)
    with pytest.raises(UnsupportedError, match="image: given to a PixArtSigmaPipeline, want a pipeline of which"):
        generate(loading.load(out, runtime="onnx"), Request("a fox", image=out / "fox.png"))
    file = next((out / "tokenizer").glob("*.json"))
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(
        ArtifactError, match=rf"{file.name}: \d+ bytes, want \d+ bytes\. Build it again: svdq-trt build"
    ):
        loading.load(out)
    file.write_bytes(content)
    (out / "vae_decoder" / "model.onnx").write_text("another one")
    write_manifest(out / "vae_decoder", onnx=file_entry(out / "vae_decoder" / "model.onnx"))
    with pytest.raises(ArtifactError, match=r"vae_decoder: another engine than pipeline\.json's, want its vae_decoder"):
        loading.load(out)
    data = pipeline_file.read(out)
    pipeline_file.write(
        out,
        PipelineFile(pipeline=data.pipeline, engines={"transformer": data.engines["transformer"]}, files=data.files),
    )
    with pytest.raises(
        ArtifactError, match="PixArtSigmaPipeline of transformer, want a PixArtSigmaPipeline of text_enc"
    ):
        loading.load(out)


def test_what_no_engine_takes_is_refused_before_one_runs(tmp_path, monkeypatch):
    """Sides of a picture that has enough pixels, and text of a command line's bytes."""
    pipe = loading.load(tiny("QwenImagePipeline", tmp_path, monkeypatch)[1], runtime="onnx")
    with pytest.raises(ShapeError, match=r"width: 32, want at least 64\. Build the engine with a wider --width"):
        generate(pipe, Request("a fox", steps=1, width=32, height=256))
    for text in ({"prompt": "a fox \udcff"}, {"prompt": "a fox", "negative": "\udcff"}):
        with pytest.raises(UsageError, match="bytes that are not UTF-8, want text in UTF-8"):
            Request(**text)


def test_the_former_names_still_work():
    import svdq_trt.pipeline
    from svdq_trt.runtime.pipeline import attach

    with pytest.warns(UserWarning, match="attach is now in svdq_trt.runtime"):
        assert svdq_trt.pipeline.attach is attach
    assert svdq_trt.pipeline.load is loading.load
