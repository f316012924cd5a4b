"""bench_pipeline.py's folders are pipelines that a build takes, of the published sizes; a GPU times them."""

from __future__ import annotations

import functools
import json
import time

import bench_pipeline
import pytest
from PIL import Image
from pipeline_bench import compiled as rival
from pipeline_bench import measured
from pipeline_bench.folder import write

from svdq_trt.build.config import BuildConfig
from svdq_trt.build.pipeline_work import plan_pipeline
from svdq_trt.build.sizes import Sizes
from svdq_trt.cli import parse
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.language_model import LanguageModel, is_language_model
from svdq_trt.models.pipelines import PipelineFolder
from tests.harness import module_engines
from tests.harness.recipes import weight_bytes

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
#: whole millions of parameters as published: CLIP-L, CLIP-G, Qwen3 4B, Gemma 2 2B, autoencoders; of Qwen2.5-VL 7B
#: and Mistral Small 3.1 no head and no vision tower, and layers as far as they are read; FLUX.1's T5 is built in 4 bits
SIZES = {
    "sdxl": {"text_encoder": 123, "text_encoder_2": 694, "vae": 83},
    "flux1-dev": {"text_encoder": 123, "vae": 83},
    "flux2-klein-4b": {"text_encoder": 3114, "vae": 84},
    "flux2-dev": {"text_encoder": 17343, "vae": 84},
    "z-image-turbo": {"text_encoder": 3921, "vae": 83},
    "sana-1.6b": {"text_encoder": 2614, "vae": 312},
    "qwen-image": {"text_encoder": 7070, "vae": 126},
}


@pytest.mark.parametrize("model", bench_pipeline.MODELS)
def test_folder_is_a_pipeline_of_the_published_size(model, tmp_path):
    import torch

    write(model, tmp_path)
    quantize = {"quantize_text": True} if model == "flux1-dev" else {}
    config = BuildConfig(model, ("sm_90",), tmp_path / "out", random_weights=0, pipeline=tmp_path, **quantize)
    spec = get_model(model)
    work = plan_pipeline(config, spec, Sizes({name: getattr(spec.profile, name) for name in vars(spec.profile)}))
    found = {}
    with torch.device("meta"):
        for one in work.parts:
            found[one.part.component] = sum(p.numel() for p in one.part.build().parameters()) // 1_000_000
    assert found == SIZES[model]
    assert {name: build.model for name, build in work.quantized.items()} == (
        {"text_encoder_2": "t5-xxl"} if quantize else {}
    )


#: GB of a language model's weights with rank 32, as docs/build.md has them
IN_4_BITS = {
    "flux2-dev": {"int4": 10.47, "w4a8": 10.20, "nvfp4": 10.99},
    "flux2-klein-4b": {"int4": 2.32, "w4a8": 2.28, "nvfp4": 2.40},
    "z-image-turbo": {"int4": 2.77, "w4a8": 2.72, "nvfp4": 2.88},
    "qwen-image": {"int4": 4.71, "w4a8": 4.61, "nvfp4": 4.91},
    "sana-1.6b": {"int4": 2.34, "w4a8": 2.30, "nvfp4": 2.40},
}


@pytest.mark.parametrize("model", IN_4_BITS)
def test_a_language_model_takes_a_third_in_4_bits(model, tmp_path):
    write(model, tmp_path)
    spec = get_model(model)
    (part,) = filter(is_language_model, PipelineFolder.read(tmp_path).parts(spec.act_dtype, spec.profile.tokens[2]))
    found = get_model(LanguageModel("text", part).to_text())
    assert not found.recipe(found.build(tables=False)).kept
    sizes = weight_bytes(found, [*IN_4_BITS[model]])
    assert {fmt: round(size / 1e9, 2) for fmt, size in sizes.items()} == IN_4_BITS[model]


@pytest.mark.parametrize("code", [0, 2, 4])
def test_make_builds_and_adds_the_plans_that_are_missing(code, tmp_path, monkeypatch):
    built, planned = [], []
    monkeypatch.setattr("svdq_trt.cli.main", lambda words: (built.extend(words), code)[1])
    monkeypatch.setattr("pipeline_bench.plans.make", planned.append)
    words = ["make", "sdxl", "--out", str(tmp_path), "--build=--vae-tile 512"]
    monkeypatch.setattr("sys.argv", ["bench_pipeline.py", *words])
    assert bench_pipeline.main() == (2 if code == 2 else 0)
    options = parse(built)
    assert options.pipeline == tmp_path / "sdxl-pipeline" and (options.pipeline / "model_index.json").is_file()
    assert options.vae_tile == 512 and options.weight_streaming == ["text_encoder", "text_encoder_2"]
    assert planned == ([tmp_path / "sdxl-sm_90"] if code == 4 else [])


@pytest.mark.parametrize("name", module_engines.KINDS)
def test_rival_is_diffusers_pipeline_as_the_engines_are_run(name, tmp_path, monkeypatch):
    import diffusers
    import torch

    compiled, calls = [], []
    monkeypatch.setitem(MODELS, "klein", module_engines.klein())
    monkeypatch.setattr(rival, "DEVICE", "cpu")
    monkeypatch.setattr(measured, "used_bytes", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append(type(module).__name__))
    cls = getattr(diffusers, name)
    call = cls.__call__

    @functools.wraps(call)
    def recorded(pipe, **given):
        calls.append((pipe, given))
        return call(pipe, **given)

    monkeypatch.setattr(cls, "__call__", recorded)
    _, folder, _ = module_engines.tiny(name, tmp_path)
    if name == "Flux2KleinPipeline":
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    request = {"prompt": "a fox", "steps": 2, "guidance": 3.0, "height": 64, "width": 64}
    job = {"folder": str(folder), "mode": None, "pictures": 1, "started": time.time(), "out": str(tmp_path / "picture")}
    found = rival.run(job | {"request": request})
    assert len(found["all_s"]) == 1 and 0 < found["weights_s"] < found["first_s"]
    assert [Image.open(tmp_path / f"picture-{seed}.png").size for seed in range(2)] == [(64, 64)] * 2
    pipe, given = calls[-1]
    spec = get_model(module_engines.KINDS[name][0])
    assert given["num_inference_steps"] == 2 and given[spec.guidance] == 3.0
    assert given.items() >= module_engines.KINDS[name][2].items()  # texts as long as in the engines
    assert pipe.config.get("is_distilled", True)
    assert "Decoder" in compiled.pop() and len(compiled) == sum(
        type(module).__name__ in (spec.model_class()._repeated_blocks or [spec.model_class().__name__])
        for module in getattr(pipe, spec.subfolder).modules()
    )


def test_a_first_picture_is_counted_from_the_process_and_from_the_weights():
    both = {"picture_s": 2.0, "memory_bytes": 6_000_000_000}
    engines = both | {"first_s": 12.5, "open_s": 9.0, "parts_s": {"text": 0.02, "steps": 1.5}}
    engines |= {"slowest": "unet", "slowest_s": {"check": 0.5, "load": 4.0}}
    rival = {"picture_s": 3.0, "memory_bytes": 12_000_000_000, "first_s": 50.0, "weights_s": 25.0}
    ours, theirs = (bench_pipeline._row(*one, engines) for one in (("engines", engines), ("compile", rival)))
    assert ours.endswith("open 9.0 s (slowest unet: check 0.5 s, load 4.0 s), text 0.020 s, steps 1.500 s")
    said = "first 25.00 s after its weights; engines: 1.50x as fast, 50% of the memory, first picture "
    first = "4.00x as soon (2.00x without its weights) at the first start"
    assert theirs.startswith("compile") and theirs.endswith(f"50.00        -    3.000     12.00   {said}{first}")
    again = [one | {"again": {"first_s": seconds, "weights_s": 20.0}} for one, seconds in ((engines, 8), (rival, 40))]
    ours, theirs = (bench_pipeline._row(name, again[i], again[0]) for i, name in enumerate(("engines", "compile")))
    assert "12.50     8.00    2.000" in ours
    assert theirs.endswith(f"{said}{first}, 5.00x as soon (2.50x without its weights) at the second")
