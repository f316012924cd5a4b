"""Job: the model in torch as its users speed it up: diffusers' own module under torch.compile, in 16 bit or fp8."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from engine_bench.measure import time_ms, used_bytes
from engine_bench.model import inputs_of
from svdq_trt.checkpoint.random_weights import fill_random
from svdq_trt.models import ModelSpec, get_model

E4M3_MAX = 448.0


class Fp8Linear(nn.Module):
    """A linear in e4m3: weight scaled by row, x [..., K] by token when it comes; `torch._scaled_mm`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.scale = _to_fp8(linear.weight.detach())
        self.weight, self.bias = weight.t(), linear.bias  # column-major, as the product wants it

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = _to_fp8(x.flatten(0, -2))
        y = torch._scaled_mm(
            rows, self.weight, scale, self.scale.t(), bias=self.bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return y.unflatten(0, x.shape[:-1])


def _to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [M, K] in e4m3, and their scales [M, 1] f32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def _use_fp8(module: nn.Module, spec: ModelSpec) -> None:
    """Replace the linears that a quantized engine has in 4 bits, but for those that read a row per image."""
    for name in {member for group in spec.groups(module) if not group.weight_only for member in group.members}:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, Fp8Linear(module.get_submodule(name)))


@torch.no_grad()
def rival(job: dict[str, Any]) -> dict[str, Any]:
    """Time the compiled module, as `measure.engine`. job: model, sizes, fp8, repeat.

    Where diffusers names the repeated blocks these are compiled, once each, else the whole; the step is a CUDA graph.
    """
    spec = get_model(job["model"])
    sys.stdin.readline()
    inputs = dict(zip((io.name for io in spec.inputs), inputs_of(spec, job["sizes"], "cuda"), strict=True))
    torch.cuda.synchronize()
    before = used_bytes()
    module: Any = spec.build()
    fill_random(spec, module, 0, device="cuda")
    nn.Module.to(module, "cuda")
    if job["fp8"]:
        _use_fp8(module, spec)
        torch.cuda.empty_cache()
    if module._repeated_blocks:
        module.compile_repeated_blocks()
    else:
        module.compile()
    arguments = spec.family.arguments(inputs)

    def run() -> Tensor:
        y: Tensor = module(**arguments, return_dict=False)[0]
        return y

    for _ in range(2):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = time_ms(graph.replay, job["repeat"])
    return {
        "latency_ms": times,
        "memory_bytes": used_bytes() - before,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
