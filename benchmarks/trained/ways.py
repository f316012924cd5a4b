"""The ways to make a trained pipeline's pictures: in 16 bit and quantized in torch, and by engines.

A denoiser that `svdq-trt quantize` made runs in diffusers' own pipeline; engines that `svdq-trt build --pipeline` made
run as `svdq-trt run` does. Each way gets the same prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from svdq_trt.artifact import manifest, pipeline_file, svdq_file
from svdq_trt.lora.apply import LoraRequest, apply_loras
from svdq_trt.models import ModelSpec
from svdq_trt.models.denoiser import Denoiser, attached
from svdq_trt.nn.restore import restore_model
from svdq_trt.runtime.choice import choose_runtime
from svdq_trt.runtime.generate import generate
from svdq_trt.runtime.loading import load
from svdq_trt.runtime.request import Request
from trained import captions
from trained.linears import unpack
from trained.pipelines import Pipeline
from trained.teach import lora_folder

PLAIN, STYLED = "as trained", "with the LoRA"
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Asked:
    """What is asked of every way.

    Attributes:
        kind: the pipeline. spec: its denoiser's model. folder: as `teach_pipeline` wrote it.
        artifacts: its quantized denoisers, by format. prompts: prompt i starts from seed i.
        steps: of denoising. device: of torch.
    """

    kind: Pipeline
    spec: ModelSpec
    folder: Path
    artifacts: Mapping[str, Path]
    prompts: list[str]
    steps: int
    device: str


@dataclass(frozen=True)
class Way:
    """A way to make the pictures; the first of its section is what the section's others are compared with.

    Attributes:
        section: PLAIN or STYLED. label: for people. pictures: makes them, uint8 [B, 3, SIDE, SIDE].
    """

    section: str
    label: str
    pictures: Callable[[], Tensor]


def ways(asked: Asked, engines: Path | None) -> list[Way]:
    """All, 16 bit first in both sections. `engines` is what `svdq-trt build --out` wrote, None without any."""
    found = [Way(PLAIN, "16 bit", partial(in_torch, asked))]
    found += [Way(PLAIN, name, partial(in_torch, asked, name)) for name in asked.artifacts]
    found += [Way(STYLED, "16 bit", partial(in_torch, asked, styled=True))]
    found += [Way(STYLED, "w4a8", partial(in_torch, asked, "w4a8", styled=True))]
    found += () if engines is None else by_engines(asked, engines)
    return sorted(found, key=lambda way: (PLAIN, STYLED).index(way.section))


def in_torch(asked: Asked, name: str = "", styled: bool = False) -> Tensor:
    """By diffusers; the denoiser in the format `name`, or in 16 bit."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(asked.folder, dtype=asked.kind.dtype)
    if name:
        runner = TorchRunner(asked.spec, quantized(asked, name, styled).to(asked.device), asked.device)
        original = getattr(pipe, asked.kind.denoiser)
        setattr(pipe, asked.kind.denoiser, Denoiser(runner, asked.spec, asked.kind.denoiser, original.config).eval())
    elif styled:
        pipe.load_lora_weights(lora_folder(asked.folder) / LORA_FILE)
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(asked.prompts))]
    return in_bytes(call(pipe.to(asked.device), asked.kind, asked.prompts, asked.steps, generator=noise))


def call(pipe: Any, kind: Pipeline, prompts: str | list[str], steps: int, **noise: Any) -> list[Any]:
    """The PIL images of a pipeline of diffusers; `noise`: its generator or latents."""
    images: list[Any] = pipe(
        prompts,
        height=captions.SIDE,
        width=captions.SIDE,
        num_inference_steps=steps,
        guidance_scale=kind.guidance,
        **kind.asked,
        **noise,
    ).images
    return images


class Input(NamedTuple):
    """An input of TorchRunner, as StandIn wants to know it."""

    name: str
    dtype: str


class TorchRunner:
    """A quantized denoiser in torch, run as an engine of it is: with the inputs and the positions of an export."""

    def __init__(self, spec: ModelSpec, module: nn.Module, device: str) -> None:
        self.spec, self.device, self.flat = spec, device, spec.wrap(module)
        dtypes = (str(io.torch_dtype(spec.torch_dtype)).removeprefix("torch.") for io in spec.inputs)
        self.inputs = [Input(io.name, dtype) for io, dtype in zip(spec.inputs, dtypes, strict=True)]

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it on inputs by name."""
        return self.spec.run(self.flat, [inputs[io.name].to(self.device) for io in self.spec.inputs])


def quantized(asked: Asked, name: str, styled: bool) -> nn.Module:
    """The denoiser in a format; its linears in torch."""
    artifact = asked.artifacts[name]
    if styled:
        plain, artifact = artifact, artifact.with_name("styled.safetensors")
        request = LoraRequest(lora_folder(asked.folder) / LORA_FILE)
        apply_loras(plain, [request], asked.spec, False, artifact, lambda done, total, text="": None)
    module = restore_model(svdq_file.load(artifact), asked.spec)
    unpack(module)
    return module


def by_engines(asked: Asked, folder: Path) -> Iterator[Way]:
    """One for each engine folder of the pipeline in `folder`."""
    for engine in sorted(path.parent for path in folder.glob(f"*/{pipeline_file.NAME}")):
        data = manifest.read(engine)
        if data.model == asked.spec.name:
            section = STYLED if data.loras else PLAIN
            where = "TensorRT" if choose_runtime(engine, data, "auto")[0] else "ONNX Runtime"
            yield Way(section, f"{data.format} in {where}", partial(by_engine, asked, engine))


def by_engine(asked: Asked, folder: Path) -> Tensor:
    """By the engines of a folder: in TensorRT where they have plans for the GPU, else in ONNX Runtime."""
    pipe: Any = load(folder)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for seed, prompt in enumerate(asked.prompts):
        request = Request(
            prompt,
            steps=asked.steps,
            guidance=asked.kind.guidance,
            seed=seed,
            width=captions.SIDE,
            height=captions.SIDE,
        )
        images += generate(pipe, request)[0]
    for denoiser in attached(pipe).values():
        session: Any = denoiser.runner
        session.close()
    return in_bytes(images)


def in_bytes(images: list[Any]) -> Tensor:
    """PIL images or arrays as uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
