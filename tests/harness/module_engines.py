"""A folder of engines that are none: a tiny pipeline's modules in torch stand in for them, each by its folder."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.pipeline_file import GraphEntry, PipelineFile
from svdq_trt.build.sizes import Sizes
from svdq_trt.checkpoint.parts import load_part
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.models.pipelines import PipelineFolder
from tests.harness import tiny_pipelines
from tests.harness.manifests import file_entry, tensor_entry, write_manifest


def klein() -> ModelSpec:
    """flux2-tiny without guidance, a model that tests add to MODELS."""
    tiny = get_model("flux2-tiny")
    inputs = tuple(io for io in tiny.inputs if io.name != "guidance")
    return replace(tiny, name="klein", config={**tiny.config, "guidance_embeds": False}, inputs=inputs)


MOST = 2**15  # pixels of a side that nothing here exceeds
TOKENS = (93,) * 3  # of SD3: 77 of CLIP, 16 of T5
#: a pipeline's class -> the model of its denoiser, what makes the other components, and what a call must be told so
#: that the text is as long as in the engines
KINDS: dict[str, tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "StableDiffusionXLPipeline": ("sdxl-tiny", tiny_pipelines.sdxl_parts, {}),
    "FluxPipeline": ("flux1-tiny", tiny_pipelines.flux_parts, {"max_sequence_length": 16}),
    "PixArtSigmaPipeline": (
        "pixart-tiny",
        tiny_pipelines.pixart_parts,
        {"max_sequence_length": 24, "use_resolution_binning": False},
    ),
    "StableDiffusion3Pipeline": ("sd3-tiny", tiny_pipelines.sd3_parts, {"max_sequence_length": 16}),
    "ChromaPipeline": ("chroma-tiny", tiny_pipelines.chroma_parts, {"max_sequence_length": 16}),
    "ZImagePipeline": ("z-image-tiny", tiny_pipelines.z_image_parts, {"max_sequence_length": 96}),
    "SanaPipeline": (
        "sana-tiny",
        tiny_pipelines.sana_parts,
        {"max_sequence_length": 24, "use_resolution_binning": False},
    ),
    "QwenImagePipeline": ("qwen-image-tiny", tiny_pipelines.qwen_image_parts, {}),
    "Flux2Pipeline": ("flux2-tiny", tiny_pipelines.flux2_parts, {"max_sequence_length": 16}),
    "Flux2KleinPipeline": ("klein", tiny_pipelines.klein_parts, {"max_sequence_length": 16}),
}


class Direct:
    """A graph in torch as a runner with a manifest."""

    def __init__(self, graph: Any, outputs: Any, data: Any) -> None:
        self.graph, self.outputs, self.manifest, self.closed = graph, outputs, data, False
        self.seconds = {"check": 0.25, "load": 0.5}
        self.inputs = [tensor.profile for tensor in data.inputs]

    def close(self) -> None:
        self.closed = True

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = self.graph(**inputs)
        return {io.name: v for io, v in zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True)}


def tiny(name: str, folder: Path, **changed: Any) -> tuple[Any, Path, dict[Path, Direct]]:
    """Diffusers' own pipeline, the folder of the same models as engines, and what runs them by their folders.

    Args:
        name: the pipeline's class. changed: components other than the tiny pipeline's.
    """
    import diffusers

    model, make, _ = KINDS[name]
    spec = get_model(model)
    (folder / "words" / "t5").mkdir(parents=True)
    torch.manual_seed(1)
    denoiser = spec.model_class()(**spec.config).to(spec.torch_dtype).eval().requires_grad_(False)
    own = getattr(diffusers, name)(**{spec.subfolder: denoiser}, **make(folder / "words") | changed)
    own.set_progress_bar_config(disable=True)
    tiny_pipelines.save_whole(own, folder / "own")
    source, out = PipelineFolder.read(folder / "own"), folder / "engines"
    files = source.copied_files()
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "own" / file, out / file)

    tokens = TOKENS if model == "sd3-tiny" else spec.profile.tokens
    sides = {"height": (64, 64, MOST), "width": (64, 128, MOST)}
    counts = {"batch": (1, 1, 4), "tokens": tokens}
    sizes = Sizes({symbol: (1, 1, 1) for symbol in spec.profile.sizes(0)} | counts | sides)
    module = copy.deepcopy(denoiser)
    spec.family.prepare(module)
    graphs: dict[str, tuple[Path, str, Any, Any]] = {spec.subfolder: (out, model, spec.wrap(module), spec)}
    for part in source.parts(spec.act_dtype, tokens[2]):
        graph = part.wrap(load_part(part, folder / "own", "", None))
        graphs[part.name] = (out / part.name, part.class_name, graph, part)
    runners = {at: _engine(at, kind, graph, ios, sizes) for at, kind, graph, ios in graphs.values()}
    entries = {n: GraphEntry.of("." if at == out else n, runners[at].manifest) for n, (at, *_) in graphs.items()}
    listed = tuple(FileEntry(**file_entry(out / file) | {"file": file}) for file in files)
    pipeline_file.write(out, PipelineFile(pipeline=name, engines=entries, files=listed))
    return own, out, runners


def _engine(folder: Path, name: str, graph: Any, ios: Any, sizes: Sizes) -> Direct:
    """Manifest and a graph's file, and what runs it; `ios`: the model's or the part's."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_text(folder.name)
    inputs = [
        tensor_entry(p.name, p.dtype, *zip(p.min, p.opt, p.max, strict=True)) | {"axes": p.axes}
        for p in sizes.tensors(ios.inputs, ios.torch_dtype)
    ]
    given = ("tokens", "height", "width")
    config = {size: dict(zip(("min", "opt", "max"), sizes.profile[size], strict=True)) for size in given}
    write_manifest(folder, model=name, onnx=file_entry(folder / "model.onnx"), inputs=inputs, config=config)
    return Direct(graph, ios.outputs, manifest.read(folder))
