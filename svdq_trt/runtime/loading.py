"""``load``: a folder of engines as a diffusers pipeline."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdq_trt.base.extras import required_by
from svdq_trt.base.garbage import no_collections
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.runtime.choice import Opening
from svdq_trt.runtime.engines import Engines


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
    They are opened side by side, while torch, diffusers and transformers are imported. An error of one closes the
    others.
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
    how = Opening(allow_host_code, allow_arch_mismatch, device, onnx_device)
    engines = Engines(Path(folder), runtime, how, weight_budget, cuda_graph)
    calls = {name: functools.partial(engines.open, name) for name in engines.for_every_picture}
    with (
        required_by("svdq_trt.pipeline"),
        no_collections(),
        SideBySide(calls, discard=lambda runner: runner.close()) as opening,
    ):
        from svdq_trt.runtime.engine_pipeline import engine_pipeline

        return engine_pipeline(engines, opening)


def slowest_opening(pipe: Any) -> tuple[str, Mapping[str, float]]:
    """The component of a pipeline of `load` whose engine took the longest to open, and the seconds of that by part."""
    from svdq_trt.models.stand_in import StandIn

    sessions: dict[str, Any] = {name: one.runner for name, one in pipe.components.items() if isinstance(one, StandIn)}
    name = max(sessions, key=lambda name: sum(sessions[name].seconds.values()))
    return name, sessions[name].seconds
