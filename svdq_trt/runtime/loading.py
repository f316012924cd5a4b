"""``load``: a folder of engines as a diffusers pipeline."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError, UsageError, first_line
from svdq_trt.base.extras import required_by
from svdq_trt.base.needs import need
from svdq_trt.models import get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import Autoencoder, TextEncoder
from svdq_trt.models.parts import GRAPHS, full_config, graph_name
from svdq_trt.models.pipelines import INDEX, PipelineFolder
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.choice import Opening, choose_runtime
from svdq_trt.runtime.protocol import Runner


def load(
    folder: str | Path,
    *,
    runtime: str = "auto",
    device: int = 0,
    onnx_device: str = "auto",
    allow_host_code: bool = False,
    allow_arch_mismatch: bool = False,
    weight_budget: int | None = None,
    cuda_graph: bool = True,
) -> Any:
    """A diffusers pipeline whose models are the engines of `folder`, which ``svdq-trt build --pipeline`` wrote.

        pipe = svdq_trt.pipeline.load("engines/sdxl-sm_89")
        image = pipe("a photo of a fox", num_inference_steps=30).images[0]

    Its class is that of the pipeline that the engines were built from, its tokenizers and scheduler too; each of its
    models runs an engine (`pipe.unet.runner` is the session). On a machine without a GPU they run in ONNX Runtime.
    In TensorRT the engines share memory for their activations, so one thread at a time may use the pipeline.

    Args:
        folder: the denoiser's engine folder, with pipeline.json.
        runtime: "auto" (TensorRT where an engine has a plan and there is a GPU), "tensorrt" or "onnx".
        device, allow_host_code, allow_arch_mismatch: see Session. onnx_device: see OnnxSession.
        weight_budget, cuda_graph: of the denoiser in TensorRT, see Session.

    Raises:
        UsageError: a weight_budget, and the denoiser does not run in TensorRT.
        ArtifactError: an engine or a file that is missing, or not what pipeline.json says. Errors of Session and
            OnnxSession.
    """
    with required_by("svdq_trt.pipeline"):
        how = Opening(allow_host_code, allow_arch_mismatch, device, onnx_device)
        return _Loader(Path(folder), runtime, how, weight_budget, cuda_graph).pipeline()


class _Loader:
    """The components of one folder."""

    def __init__(self, folder: Path, runtime: str, how: Opening, weight_budget: int | None, graph: bool) -> None:
        self.folder, self.runtime, self.how = folder, runtime, how
        self.weight_budget, self.graph, self.activations = weight_budget, graph, SharedActivations()
        self.file, self.manifests = pipeline_file.verify(folder)
        self.source = PipelineFolder.read(folder)
        kind = self.source.kind
        wanted = {kind.denoiser: ".", **{name: name for name in self.source.part_names()}}
        engines = {name: entry.folder for name, entry in self.file.engines.items()}
        if (kind.class_name, wanted) != (self.file.pipeline, engines):
            got = f"{self.file.pipeline} of {', '.join(sorted(engines))}"
            want = f"a {kind.class_name} of {', '.join(sorted(wanted))}, as {INDEX} says"
            raise ArtifactError(str(folder / pipeline_file.NAME), got, want)
        self.spec = get_model(self.manifests[kind.denoiser].source)

    def pipeline(self) -> Any:
        """The pipeline."""
        cls = need("diffusers", "diffusers", self.source.kind.class_name)
        parameters = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
        absent = {p.name: None for p in parameters if p.default is inspect.Parameter.empty}
        settings = {p.name: self.source.settings[p.name] for p in parameters if p.name in self.source.settings}
        return cls(**absent | settings | {name: self._component(name) for name in self.source.classes})

    def _component(self, name: str) -> Any:
        class_name = self.source.classes[name]
        if name == self.source.kind.denoiser:
            session = self._open(name, weight_budget=self.weight_budget, cuda_graph=self.graph)
            return Denoiser(session, self.spec, name).eval()
        if class_name not in GRAPHS:
            return self._from_files(name, class_name)
        config = full_config(class_name, self.source.config(name))
        if class_name == "AutoencoderKL":
            encoder = functools.partial(self._open, graph_name(name, "encoder"))
            return Autoencoder(self._open(graph_name(name, "decoder")), name, config, encoder)
        return TextEncoder(self._open(name), name, class_name, config, self.spec.torch_dtype)

    def _open(self, name: str, **of_session: Any) -> Runner:
        """Open the engine of the denoiser or of a part."""
        folder = self.folder / self.file.engines[name].folder
        in_tensorrt, _ = choose_runtime(folder, self.manifests[name], self.runtime)
        if of_session.get("weight_budget") is not None and not in_tensorrt:
            raise UsageError("weight_budget", "given to engines that run in ONNX Runtime", "TensorRT")
        return self.how.open(folder, in_tensorrt, activations=self.activations, **of_session)

    def _from_files(self, name: str, class_name: str) -> Any:
        """The scheduler or a tokenizer, by its own library from the copied files."""
        library = "transformers" if self.source.is_tokenizer(name) else "diffusers"
        cls = need(library, library, class_name)
        try:
            return cls.from_pretrained(self.folder / name, local_files_only=True)
        except Exception as error:  # whatever the files make the library stumble over
            reason = first_line(error)
            raise ArtifactError(str(self.folder / name), f"cannot be loaded ({reason})", f"a {class_name}") from error
