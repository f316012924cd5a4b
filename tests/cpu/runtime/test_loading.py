"""A folder of engines as a diffusers pipeline, against diffusers' own; torch modules stand in for the engines."""

from __future__ import annotations

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.pipeline_file import GraphEntry, PipelineFile
from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.models import get_model
from svdq_trt.models.pipelines import PipelineFolder
from svdq_trt.runtime import loading
from svdq_trt.runtime.generate import Request, generate
from tests.harness import tiny_pipelines
from tests.harness.manifests import file_entry, write_manifest

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
ANY = 2**20  # sizes that nothing here exceeds
TOKENS = 93  # of SD3: 77 of CLIP, 16 of T5
KINDS = {
    "StableDiffusionXLPipeline": ("sdxl-tiny", tiny_pipelines.sdxl_parts),
    "FluxPipeline": ("flux1-tiny", tiny_pipelines.flux_parts),
    "PixArtSigmaPipeline": ("pixart-tiny", tiny_pipelines.pixart_parts),
    "StableDiffusion3Pipeline": ("sd3-tiny", tiny_pipelines.sd3_parts),
}


class Direct:
    """A graph in torch as a runner with a manifest."""

    def __init__(self, graph, ios, outputs, act, data):
        self.graph, self.outputs, self.manifest, self.closed = graph, outputs, data, False
        dtypes = {io.name: str(io.torch_dtype(act)).removeprefix("torch.") for io in ios}
        self.inputs = [
            SimpleNamespace(
                name=io.name,
                dtype=dtypes[io.name],
                min=(1,) * len(io.dims),
                max=(4 if io.has_batch else ANY, *(ANY,) * (len(io.dims) - 1)),
            )
            for io in ios
        ]

    @torch.no_grad()
    def run(self, inputs):
        found = self.graph(**inputs)
        return {io.name: v for io, v in zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True)}


def engine_folder(folder, name):
    """Manifest and a graph's file of an engine that is none."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_text(folder.name)
    size = {"min": TOKENS, "opt": TOKENS, "max": TOKENS} if name == "sd3-tiny" else None
    write_manifest(folder, model=name, onnx=file_entry(folder / "model.onnx"), config={"tokens": size})
    return manifest.read(folder)


def tiny(name, tmp_path, monkeypatch):
    """Diffusers' own pipeline, and the folder of the same models as engines."""
    import diffusers

    model, make = KINDS[name]
    spec = get_model(model)
    (tmp_path / "words" / "t5").mkdir(parents=True)
    torch.manual_seed(1)
    denoiser = spec.model_class()(**spec.config).to(spec.torch_dtype).eval().requires_grad_(False)
    own = getattr(diffusers, name)(**{spec.subfolder: denoiser}, **make(tmp_path / "words"))
    own.set_progress_bar_config(disable=True)
    own.save_pretrained(tmp_path / "own")
    source, out = PipelineFolder.read(tmp_path / "own"), tmp_path / "engines"
    files = source.copied_files()
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "own" / file, out / file)
    manifests = {spec.subfolder: engine_folder(out, model)}
    module = copy.deepcopy(denoiser)
    spec.family.prepare(module)
    runners = {out: Direct(spec.wrap(module), spec.inputs, spec.outputs, spec.torch_dtype, manifests[spec.subfolder])}
    for part in source.parts(spec.act_dtype, TOKENS if model == "sd3-tiny" else spec.profile.tokens[1]):
        data = manifests[part.name] = engine_folder(out / part.name, part.class_name)
        graph = part.wrap(copy.deepcopy(getattr(own, part.component)).to(part.torch_dtype))
        runners[out / part.name] = Direct(graph, part.inputs, part.outputs, part.torch_dtype, data)
    entries = {n: GraphEntry.of("." if n == spec.subfolder else n, data) for n, data in manifests.items()}
    listed = tuple(FileEntry(**file_entry(out / file) | {"file": file}) for file in files)
    pipeline_file.write(out, PipelineFile(pipeline=name, engines=entries, files=listed))
    monkeypatch.setattr(loading.Opening, "open", lambda self, folder, in_tensorrt: runners[folder])
    return own, out


def psnr(want, got):
    """Of pictures of 8 bits, in dB."""
    want, got = (np.asarray(one, dtype=np.float64) for one in (want, got))
    return float(10 * np.log10(255**2 / max(np.mean((want - got) ** 2), 1e-9)))


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_those_of_diffusers_own_pipeline(name, tmp_path, monkeypatch):
    own, out = tiny(name, tmp_path, monkeypatch)
    pipe = loading.load(out, runtime="onnx")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is type(own) and not [
        p for m in pipe.components.values() for p in getattr(m, "parameters", list)()
    ]
    options = {} if name == "FluxPipeline" else {"negative": "owls"}
    asked = {"width": 64, "height": 128, "steps": 2, "guidance": 4.0}
    (got,), times = generate(pipe, Request("a fox", seed=3, **options, **asked))
    assert times.runs["steps"] == 2 and times.runs["VAE"] == 1 and times.runs["text"] >= 1
    call = {"width": 64, "height": 128, "num_inference_steps": 2, "guidance_scale": 4.0}
    call |= {"negative_prompt": "owls"} if options else {}
    call |= {"FluxPipeline": {"max_sequence_length": 16}, "StableDiffusion3Pipeline": {"max_sequence_length": 16}}.get(
        name, {}
    )
    if name == "PixArtSigmaPipeline":
        call |= {"max_sequence_length": 24, "use_resolution_binning": False}
    want, other = (own("a fox", generator=torch.Generator().manual_seed(s), **call).images[0] for s in (3, 4))
    figures = {"same": psnr(want, got), "another seed": psnr(want, other), "spread": float(np.asarray(want).std())}
    print(figures)
    assert figures["spread"] > 1 and figures["same"] > 45 > 25 > figures["another seed"], figures


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_a_picture_changes_as_in_diffusers_own_pipeline(name, tmp_path, monkeypatch):
    from diffusers import AutoPipelineForImage2Image

    own, out = tiny(name, tmp_path, monkeypatch)
    tiny_pipelines.picture(64, 64).save(tmp_path / "fox.png")
    asked = {"width": 128, "height": 64, "steps": 4, "guidance": 4.0, "seed": 3}
    pipe = loading.load(out, runtime="onnx")
    (got,), times = generate(pipe, Request("a fox", image=tmp_path / "fox.png", strength=0.5, **asked))
    assert times.runs["steps"] == 2 and got.size == (128, 64)
    call = {"image": tiny_pipelines.picture(64, 64).resize((128, 64)), "strength": 0.5, "num_inference_steps": 4}
    call |= {"width": 128, "height": 64, "max_sequence_length": 16} if name == "FluxPipeline" else {}
    own = AutoPipelineForImage2Image.from_pipe(own)
    want, other = (
        own("a fox", generator=torch.Generator().manual_seed(s), guidance_scale=4.0, **call).images[0] for s in (3, 4)
    )
    figures = {"same": psnr(want, got), "another seed": psnr(want, other)}
    print(figures)
    assert figures["same"] > 40 > 30 > figures["another seed"], figures


def test_what_has_no_effect_is_refused(tmp_path, monkeypatch):
    pipe = loading.load(tiny("FluxPipeline", tmp_path, monkeypatch)[1], runtime="onnx")
    with pytest.raises(UnsupportedError, match="negative: given to a FluxPipeline, want no negative prompt"):
        generate(pipe, Request("a fox", negative="dogs"))
    (tmp_path / "fox.png").write_text("no picture")
    with pytest.raises(ArtifactError, match=r"fox\.png: cannot be read \(.*\), want a picture"):
        generate(pipe, Request("a fox", image=tmp_path / "fox.png"))


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


def test_the_former_names_still_work():
    import svdq_trt.pipeline
    from svdq_trt.runtime.pipeline import attach

    with pytest.warns(UserWarning, match="attach is now in svdq_trt.runtime"):
        assert svdq_trt.pipeline.attach is attach
    assert svdq_trt.pipeline.load is loading.load
