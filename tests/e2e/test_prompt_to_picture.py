"""A prompt to a PNG by the command line, from engines alone, against diffusers' own pipeline with the same parts.

Weights are random and models small: the pictures are noise, but the same noise.
"""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

from tests.harness import tiny_pipelines
from tests.harness.builds import FIXED, build, svdq

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
SEED = 0  # of all weights


def own_pipeline(folder, engine, spec, **given):
    """Diffusers' pipeline of that folder, with the weights that the build made up; its denoiser is the engine's.

    Args:
        given: components that are there already.
    """
    from svdq_trt.checkpoint.parts import load_part
    from svdq_trt.models.pipelines import PipelineFolder
    from svdq_trt.runtime import OnnxSession, attach

    source = PipelineFolder.read(folder)
    parts = {part.component: part for part in source.parts(spec.act_dtype, spec.profile.tokens[1])}
    wanted = {name: part for name, part in parts.items() if name not in given}
    made = {name: _whole(part, load_part(part, folder, "", SEED)) for name, part in wanted.items()}
    modules = {name: module.to(spec.torch_dtype).eval() for name, module in made.items()}  # SDXL's own upcasts its VAE
    components = source.files | modules | given | {spec.subfolder: None}
    pipe = source.diffusers_class()(**source.without_components() | components)
    return attach(pipe, OnnxSession(engine, device="cpu", threads=1))


def _whole(part, module):
    """A language model with layers behind those that are read, which its engine lacks; another part as it is."""
    if not part.states:
        return module
    found = dataclasses.replace(part, states=()).build()
    found.load_state_dict(module.state_dict(), strict=False)
    return found


def psnr(want, got):
    """Of pictures of 8 bits, in dB."""
    want, got = (np.asarray(one, dtype=np.float64) for one in (want, got))
    assert want.shape == got.shape and want.std() > 1, "a picture with something on it"
    return float(10 * np.log10(255**2 / max(np.mean((want - got) ** 2), 1e-9)))


@pytest.fixture(scope="module")
def sdxl(sdxl_tiny):
    """A folder of engines for sm_89 with plans, and the pipeline that it was built from."""
    return sdxl_tiny.pipeline()


def test_every_part_is_an_engine_folder(sdxl):
    from svdq_trt.artifact import manifest

    engine, _ = sdxl
    done = svdq("verify", str(engine), "--arch", "sm_89")
    assert done.returncode == 0 and "StableDiffusionXLPipeline: 5 engines belong together" in done.stdout, done.stderr
    formats = {name: manifest.read(engine / name).format for name in ("text_encoder", "text_encoder_2", "vae_decoder")}
    assert formats == {"text_encoder": "float16", "text_encoder_2": "float16", "vae_decoder": "float32"}
    plans = {name: manifest.read(engine / name).plan for name in (".", *formats)}
    assert [name for name, plan in plans.items() if plan.weight_streaming] == ["text_encoder_2"]
    data = manifest.read(engine / "vae_encoder")
    assert data.plan is not None and data.plugin is None and data.kept_16bit and not data.quantized


def test_picture_is_that_of_diffusers_own_pipeline(sdxl, tmp_path):
    from PIL import Image

    from svdq_trt.models import get_model

    engine, folder = sdxl
    asked = ["--prompt", "a fox", "--negative", "dogs", "--steps", "2", "--guidance", "4", "--size", "64x128"]
    done = svdq("run", str(engine), *asked, "--seed", "3", "--out", str(tmp_path / "fox.png"))
    assert done.returncode == 0 and "2 steps" in done.stderr and "text" in done.stderr, done.stderr
    assert re.search(r"^engines opened in .* s; the slowest, \w+: check .* s, load .* s$", done.stderr, re.M)
    got = Image.open(tmp_path / "fox.png")
    pipe = own_pipeline(folder, engine, get_model("sdxl-tiny"))
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 64, "height": 128, "negative_prompt": "dogs"}
    want, other = (pipe("a fox", generator=torch.Generator().manual_seed(seed), **options).images[0] for seed in (3, 4))
    figures = {"engines": psnr(want, got), "another seed": psnr(want, other)}
    print(figures)
    assert figures["engines"] > 30 > 20 > figures["another seed"], figures


def test_one_seed_is_one_picture_alone_or_in_a_batch(sdxl):
    from svdq_trt.runtime.generate import generate
    from svdq_trt.runtime.loading import load
    from svdq_trt.runtime.request import Request

    pipe = load(sdxl[0])
    size = {"width": 64, "height": 64, "steps": 1}
    (first,), times = generate(pipe, Request("a fox", seed=5, **size))
    assert set(times.seconds) == {"text", "steps", "VAE"} and times.runs["steps"] == 1
    (again,), _ = generate(pipe, Request("a fox", seed=5, **size))
    assert np.array_equal(first, again)
    batch, _ = generate(pipe, Request("a fox", seed=4, batch=2, **size))
    assert psnr(first, batch[1]) > 30 and psnr(first, batch[0]) < 20


def test_image_to_image_shares_the_engines(sdxl):
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from svdq_trt.runtime.loading import load

    pipe = StableDiffusionXLImg2ImgPipeline(**load(sdxl[0]).components, add_watermarker=False)
    picture = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    out = pipe("a fox", image=picture, num_inference_steps=4, strength=0.3, output_type="np").images
    assert out.shape == (1, 64, 64, 3)


def test_what_does_not_belong_together_is_refused(sdxl, tmp_path):
    from svdq_trt.base.errors import ArtifactError, ShapeError
    from svdq_trt.runtime.generate import generate
    from svdq_trt.runtime.loading import load
    from svdq_trt.runtime.request import Request

    engine = shutil.copytree(sdxl[0], tmp_path / "engine")
    with pytest.raises(ShapeError, match="Build the engine with a wider --batch"):
        generate(load(engine), Request("a fox", steps=1, width=64, height=64, batch=4))
    words = engine / "tokenizer" / "tokenizer.json"
    content = words.read_bytes()
    words.write_bytes(content.replace(b"fox", b"fix") + b" ")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: \d+ bytes, want \d+ bytes\. Build it again"):
        load(engine)
    words.write_bytes(content)
    shutil.copytree(engine / "text_encoder_2", engine / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match=r"text_encoder: another engine than pipeline\.json's"):
        load(engine)


def test_t5_and_a_bfloat16_pipeline(tmp_path):
    """For sm_90, for which nothing here builds plans: the ONNX files are what runs."""
    from svdq_trt.models import get_model
    from svdq_trt.runtime.generate import generate
    from svdq_trt.runtime.loading import load
    from svdq_trt.runtime.request import Request

    spec, folder = get_model("flux1-tiny"), tmp_path / "pipeline"
    (tmp_path / "words" / "t5").mkdir(parents=True)
    tiny_pipelines.save("FluxPipeline", spec, tiny_pipelines.flux_parts(tmp_path / "words"), folder)
    done = build("flux1-tiny", tmp_path, "--arch", "sm_90", "--no-check", "--pipeline", str(folder), *FIXED)
    assert done.returncode == 4, done.stderr
    engine = tmp_path / "flux1-tiny-sm_90"
    (got,), _ = generate(load(engine), Request("a fox", steps=2, guidance=4.0, seed=3))
    pipe = own_pipeline(folder, engine, spec)
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 64, "height": 64, "max_sequence_length": 16}
    want, other = (pipe("a fox", generator=torch.Generator().manual_seed(s), **options).images[0] for s in (3, 4))
    figures = {"engines": psnr(want, got), "another seed": psnr(want, other)}
    print(figures)
    assert figures["engines"] > 30 > 25 > figures["another seed"], figures


#: options of the build by the pipeline's class: guidance gives two rows at once to the denoisers of Z-Image and SANA
OTHERS = {
    "ChromaPipeline": FIXED,
    "ZImagePipeline": FIXED[2:],
    "Flux2Pipeline": FIXED,
    "Flux2KleinPipeline": (*FIXED, "--tokens", "16"),
    "SanaPipeline": FIXED[2:],
    "QwenImagePipeline": FIXED,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines(name, tmp_path):
    """Plans for sm_89 are built, too; klein's small transformer is no model with a name.

    With little guidance: it multiplies the differences of two roundings, by nine in Z-Image at a scale of 4.
    """
    from PIL import Image

    from svdq_trt.artifact import manifest
    from svdq_trt.models import MODELS, get_model
    from tests.harness.module_engines import KINDS, klein

    (model, make, told), folder = KINDS[name], tmp_path / "pipeline"
    (tmp_path / "words" / "t5").mkdir(parents=True)
    tiny_pipelines.save(name, MODELS.get(model) or klein(), make(tmp_path / "words"), folder)
    words = ("--arch", "sm_89", "--no-check", "--pipeline", str(folder), *OTHERS[name])
    done = build(model if model in MODELS else str(folder), tmp_path, *words)
    assert done.returncode == 0, done.stderr
    engine, out = next(tmp_path.glob("*-sm_89")), tmp_path / "fox.png"
    asked = ["--prompt", "a fox", "--steps", "2", "--guidance", "1.5", "--seed", "3", "--out", str(out)]
    done = svdq("run", str(engine), *asked)
    assert done.returncode == 0 and "2 steps" in done.stderr, done.stderr
    spec = get_model(manifest.read(engine).source)
    pipe = own_pipeline(folder, engine, spec)
    options = {"prompt": "a fox", "num_inference_steps": 2, "width": 64, "height": 64}
    options |= spec.asked | {spec.guidance: 1.5} | told
    want, other = (pipe(generator=torch.Generator().manual_seed(s), **options).images[0] for s in (3, 4))
    figures = {"engines": psnr(want, Image.open(out)), "another seed": psnr(want, other)}
    print(figures)
    assert figures["engines"] > 30 > 25 > figures["another seed"], figures


def test_t5_in_4_bits(tmp_path):
    """For sm_90, too. The pipeline's transformer reads text as wide as t5-tiny's, and so is no model with a name."""
    from svdq_trt.artifact import manifest
    from svdq_trt.checkpoint import load as load_weights
    from svdq_trt.models import get_model
    from svdq_trt.runtime.generate import generate
    from svdq_trt.runtime.loading import load
    from svdq_trt.runtime.request import Request

    flux, t5, folder = get_model("flux1-tiny"), get_model("t5-tiny"), tmp_path / "pipeline"
    spec = dataclasses.replace(flux, config={**flux.config, "joint_attention_dim": t5.config["d_model"]})
    (tmp_path / "words" / "t5").mkdir(parents=True)
    tiny_pipelines.save("FluxPipeline", spec, tiny_pipelines.flux_parts(tmp_path / "words", **t5.config), folder)
    words = ("--arch", "sm_90", "--no-check", "--pipeline", str(folder), "--quantize-text", "--tokens", "16", *FIXED)
    done = build(str(folder), tmp_path, *words)
    assert done.returncode == 4, done.stderr
    engine = tmp_path / "pipeline-sm_90"
    data = manifest.read(engine / "text_encoder_2")
    assert (data.model, data.format, len(data.quantized)) == ("t5-tiny", "w4a8", 14)
    (got,), _ = generate(load(engine), Request("a fox", steps=2, guidance=4.0, seed=3))
    pipe = own_pipeline(folder, engine, spec, text_encoder_2=load_weights(t5, random_seed=SEED))
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 64, "height": 64, "max_sequence_length": 16}
    want, other = (pipe("a fox", generator=torch.Generator().manual_seed(s), **options).images[0] for s in (3, 4))
    figures = {"engines": psnr(want, got), "another seed": psnr(want, other)}
    print(figures)
    assert figures["engines"] > figures["another seed"] + 5, figures


def test_a_language_model_in_4_bits(tmp_path):
    """A plan for sm_89, too. Of klein's layers, which 4 bits do not fit, those of this one are four times as wide."""
    from svdq_trt.artifact import manifest
    from svdq_trt.checkpoint import load as load_weights
    from svdq_trt.models import get_model
    from svdq_trt.models.pipelines import PipelineFolder
    from svdq_trt.runtime.generate import generate
    from svdq_trt.runtime.loading import load
    from svdq_trt.runtime.request import Request
    from tests.harness.module_engines import klein

    small, folder = klein(), tmp_path / "pipeline"
    text, size = small.inputs[1], 3 * 128
    inputs = (small.inputs[0], dataclasses.replace(text, dims=(*text.dims[:2], size)), *small.inputs[2:])
    spec = dataclasses.replace(small, config={**small.config, "joint_attention_dim": size}, inputs=inputs)
    (tmp_path / "words").mkdir()
    tiny_pipelines.save(
        "Flux2KleinPipeline", spec, tiny_pipelines.klein_parts(tmp_path / "words", channels=128), folder
    )
    words = ("--arch", "sm_89", "--no-check", "--pipeline", str(folder), "--quantize-text", "--tokens", "16", *FIXED)
    done = build(str(folder), tmp_path, *words)
    assert done.returncode == 0, done.stderr
    engine = tmp_path / "pipeline-sm_89"
    data = manifest.read(engine / "text_encoder")
    assert (data.model, data.format, len(data.quantized)) == ("pipeline-text_encoder", "int4", 27 * 7)
    assert data.plan is not None
    done = svdq("verify", str(engine), "--arch", "sm_89")
    assert done.returncode == 0 and "Flux2KleinPipeline: 4 engines belong together" in done.stdout, done.stderr
    pipe = load(engine)
    (got,), _ = generate(pipe, Request("a fox", steps=2, guidance=1.0, seed=3))
    (part,) = (one for one in PipelineFolder.read(folder).parts("bfloat16", 16) if one.component == "text_encoder")
    own = own_pipeline(
        folder, engine, spec, text_encoder=_whole(part, load_weights(get_model(data.source), random_seed=SEED))
    )
    states, *wanted = (
        one.encode_prompt(text, max_sequence_length=16)[0].detach().double().flatten()
        for one, text in ((pipe, "a fox"), (own, "a fox"), (own, "an owl"))
    )
    same, other = (float(torch.cosine_similarity(states, want, dim=0)) for want in wanted)
    options = {"guidance_scale": 1.0, "num_inference_steps": 2, "width": 64, "height": 64, "max_sequence_length": 16}
    want = own(prompt="a fox", generator=torch.Generator().manual_seed(3), **options).images[0]
    print(figures := {"states": same, "of another text": other, "picture": psnr(want, got)})
    assert same > 0.985 > 0.95 > other and figures["picture"] > 40, figures
