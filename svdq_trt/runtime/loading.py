"""``load``: a folder of engines as a diffusers pipeline."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.extras import required_by
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import AUTOENCODERS, TextEncoder
from svdq_trt.models.parts import full_config, graph_name, is_autoencoder
from svdq_trt.models.pipelines import INDEX, PipelineFolder
from svdq_trt.models.stand_in import StandIn
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.choice import Opening, choose_runtime
from svdq_trt.runtime.opening import check_weight_budget
from svdq_trt.runtime.protocol import Runner


def load(
    folder: str | Path,
    *,
    runtime: str = "auto",
    device: int = 0,
    onnx_device: str = "auto",
    allow_host_code: bool = False,
    allow_arch_mismatch: bool = False,
    weight_budget: int | Mapping[str, int] | None = None,
    cuda_graph: bool = True,
) -> Any:
    """A diffusers pipeline whose models are the engines of `folder`, which ``svdq-trt build --pipeline`` wrote.

        pipe = svdq_trt.pipeline.load("engines/sdxl-sm_89")
        image = pipe("a photo of a fox", num_inference_steps=30).images[0]

    Its class is that of the pipeline that the engines were built from, its tokenizers and scheduler too; each of its
    models runs an engine (`pipe.unet.runner` is the session). On a machine without a GPU they run in ONNX Runtime.
    They are opened side by side, while diffusers and transformers are imported. An error of one closes the others.
    In TensorRT the engines share memory for their activations, so one thread at a time may use the pipeline.

    Args:
        folder: the denoiser's engine folder, with pipeline.json.
        runtime: "auto" (TensorRT where an engine has a plan and there is a GPU), "tensorrt" or "onnx".
        device, allow_host_code, allow_arch_mismatch: see Session. onnx_device: see OnnxSession.
        weight_budget: bytes of the denoiser's weights on the GPU, or of several engines' by their names in
            pipeline.json: {"transformer": 3_000_000_000, "text_encoder_2": 0}. See Session.
        cuda_graph: of the denoiser in TensorRT, see Session.

    Raises:
        UsageError: a weight budget below 0, of an unknown engine, or of one that does not run in TensorRT.
        UnsupportedError: a weight budget of an engine that was built without --weight-streaming.
        ArtifactError: an engine or a file that is missing, or not what pipeline.json says. Errors of Session and
            OnnxSession.
    """
    with required_by("svdq_trt.pipeline"):
        how = Opening(allow_host_code, allow_arch_mismatch, device, onnx_device)
        return _Loader(Path(folder), runtime, how, weight_budget, cuda_graph).pipeline()


def slowest_opening(pipe: Any) -> tuple[str, Mapping[str, float]]:
    """The component of a pipeline of `load` whose engine took the longest to open, and the seconds of that by part."""
    sessions: dict[str, Any] = {name: one.runner for name, one in pipe.components.items() if isinstance(one, StandIn)}
    name = max(sessions, key=lambda name: sum(sessions[name].seconds.values()))
    return name, sessions[name].seconds


class _Loader:
    """The components of one folder. What can be checked without a library is checked at once."""

    def __init__(
        self, folder: Path, runtime: str, how: Opening, weight_budget: int | Mapping[str, int] | None, graph: bool
    ) -> None:
        self.folder, self.how, self.graph, self.activations = folder, how, graph, SharedActivations()
        self.file, self.manifests = pipeline_file.verify(folder)
        self.source = PipelineFolder.read_index(folder)
        kind = self.source.kind
        wanted = {kind.denoiser: ".", **{name: name for name in self.source.part_names()}}
        engines = {name: entry.folder for name, entry in self.file.engines.items()}
        if (kind.class_name, wanted) != (self.file.pipeline, engines):
            got = f"{self.file.pipeline} of {', '.join(sorted(engines))}"
            want = f"a {kind.class_name} of {', '.join(sorted(wanted))}, as {INDEX} says"
            raise ArtifactError(str(folder / pipeline_file.NAME), got, want)
        self.in_tensorrt = {
            name: choose_runtime(folder / at, self.manifests[name], runtime)[0] for name, at in engines.items()
        }
        self.budgets = {kind.denoiser: weight_budget} if isinstance(weight_budget, int) else dict(weight_budget or {})
        for name, budget in self.budgets.items():
            self._check_budget(name, budget)

    def pipeline(self) -> Any:
        """The pipeline. Its engines are opened while diffusers and transformers are imported."""
        later = {graph_name(name, "encoder") for name in self.source.modules}  # of an autoencoder: at its first use
        calls = {name: functools.partial(self._open, name) for name in self.file.engines if name not in later}
        with SideBySide(calls, discard=lambda runner: runner.close()) as opening:
            self.source.check()
            run = (self.source.kind.denoiser, *self.source.modules)
            files = {name: self.source.load(name) for name in self.source.copied}
            runners = opening.results()
            spec = get_model(self.manifests[self.source.kind.denoiser].source)
            models = {name: self._model(name, spec, runners) for name in run}
            return self.source.diffusers_class()(**self.source.without_components() | files | models)

    def _check_budget(self, name: str, budget: int) -> None:
        """Raise the errors of `load` about the weight budget of an engine."""
        where = f"weight_budget of {name[:80]}"
        if name not in self.manifests:
            raise UsageError(where, "no such engine", f"one of {', '.join(self.manifests)}")
        if not self.in_tensorrt[name]:
            raise UsageError(where, "an engine that runs in ONNX Runtime", "one that runs in TensorRT")
        check_weight_budget(where, self.manifests[name], budget)

    def _model(self, name: str, spec: ModelSpec, runners: Mapping[str, Runner]) -> Any:
        """The component `name`, which runs one of the engines that are open; `spec`: the denoiser's."""
        if name == self.source.kind.denoiser:
            return Denoiser(runners[name], spec, name).eval()
        class_name = self.source.classes[name]
        config = full_config(class_name, self.source.config(name))
        if is_autoencoder(class_name):
            encoder = functools.partial(self._open, graph_name(name, "encoder"))
            return AUTOENCODERS[class_name](runners[graph_name(name, "decoder")], name, config, encoder)
        return TextEncoder(runners[name], name, class_name, config, spec.torch_dtype)

    def _open(self, name: str) -> Runner:
        """Open the engine of the denoiser or of a part."""
        folder = self.folder / self.file.engines[name].folder
        return self.how.open(
            folder,
            self.in_tensorrt[name],
            activations=self.activations,
            weight_budget=self.budgets.get(name),
            cuda_graph=self.graph and name == self.source.kind.denoiser,
        )
