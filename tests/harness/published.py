"""A checkpoint folder as diffusers itself writes it, with values of its own in every tensor; what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.checkpoint import load
from svdq_trt.models import ModelSpec
from svdq_trt.runtime import OnnxSession


def random_module(spec: ModelSpec, seed: int, **changes: Any) -> nn.Module:
    """diffusers' module in f32 with the parameters of our random weights, and `changes` to the configuration."""
    module = spec.model_class()(**{**spec.config, **changes}).eval().requires_grad_(False)
    weights = load(spec, random_seed=seed).float().state_dict()
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])
    return module


def own_module(spec: ModelSpec, seed: int, **changes: Any) -> nn.Module:
    """`random_module` whose saved buffers are not what the class makes either.

    What is added to a buffer follows from the row and the column.
    """
    module = random_module(spec, seed, **changes)
    saved, rng = module.state_dict(), torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if name in saved:
            side, half = round(buffer.shape[1] ** 0.5), buffer.shape[2] // 2
            grid = buffer.view(side, side, -1)
            grid[..., :half] += 0.5 * torch.randn(1, side, half, generator=rng)
            grid[..., half:] += 0.5 * torch.randn(side, 1, half, generator=rng)
    return module


def publish(module: Any, folder: Path, dtype: torch.dtype) -> Path:
    """Save the module as diffusers does, in `dtype`."""
    nn.Module.to(module, dtype)
    module.save_pretrained(folder)
    return folder


def joined(outputs: Any) -> Tensor:
    """A model's output; one vector of those of a model that has several."""
    return outputs if isinstance(outputs, Tensor) else torch.cat([y.flatten() for y in outputs])


def output_of(module: nn.Module, spec: ModelSpec, inputs: dict[str, Tensor]) -> Tensor:
    """What diffusers' module gives for a model's inputs by name, as `joined`; some modules give a list of samples."""
    returned = module(**spec.family.arguments(inputs), return_dict=False)
    if spec.family.results:
        return joined(spec.family.outputs(returned))
    return torch.stack(returned[0]) if isinstance(returned[0], list) else returned[0]


def _own_class(spec: ModelSpec) -> Any:
    """The class that the library itself opens such a folder with."""
    if spec.library == "diffusers":
        return spec.model_class()
    from transformers import T5EncoderModel

    return T5EncoderModel


@torch.inference_mode()
def assert_equal(spec: ModelSpec, folder: Path, sizes: Sequence[tuple[int, int]] = ((64, 96),)) -> None:
    """diffusers' module and ours compute the same from a checkpoint folder, in f32, at sizes in pixels."""
    module = _own_class(spec).from_pretrained(folder, local_files_only=True).float().eval()
    flat = spec.wrap(load(spec, str(folder)).float())
    for height, width in sizes:
        inputs = spec.example_inputs(2, height, width, dtype=torch.float32)
        want = output_of(module, spec, dict(zip((io.name for io in spec.inputs), inputs, strict=True)))
        assert 0.1 < want.std() < 10
        torch.testing.assert_close(joined(flat(*inputs)), want, rtol=0, atol=2e-4)


@torch.inference_mode()
def assert_reference(spec: ModelSpec, graph: Path) -> None:
    """The graph that a build with random weights 0 compares with computes what diffusers' module of them does.

    As far as 16 bit allow.
    """
    sizes: dict[str, Any] = spec.profile.sizes(0)
    inputs = {io.name: t for io, t in zip(spec.inputs, spec.example_inputs(**sizes), strict=True)}
    with OnnxSession(graph, device="cpu") as session:
        found = session.run(inputs)
    outputs = [found[io.name] for io in spec.outputs]
    got = joined(outputs if spec.family.results else outputs[0]).double()
    exact = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    want = output_of(random_module(spec, 0), spec, exact).double()
    sqnr = 10 * torch.log10(want.square().sum() / (want - got).square().sum())
    assert sqnr > 40, sqnr
