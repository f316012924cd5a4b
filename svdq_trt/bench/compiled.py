"""The model in torch as its users speed it up: diffusers' own module under torch.compile, in 16 bit or fp8."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.bench.clock import Clock
from svdq_trt.bench.kinds import by_kind
from svdq_trt.bench.rounds import Prepared, Profile
from svdq_trt.checkpoint.random_weights import RandomWeights
from svdq_trt.models import ModelSpec

PRECISIONS = ("16bit", "fp8")
E4M3_MAX = 448.0
_FP8_ARCH = (8, 9)  # the first whose tensor cores have e4m3
_SEED = 0


class Fp8Linear(nn.Module):
    """A linear in e4m3: weight scaled by row, x [..., K] by token when it comes; `torch._scaled_mm`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.scale = to_fp8(linear.weight.detach())
        self.weight, self.bias = weight.t(), linear.bias  # column-major, as the product wants it

    def forward(self, x: Tensor) -> Tensor:
        """Return y [..., N]."""
        rows, scale = to_fp8(x.flatten(0, -2))
        y: Tensor = torch._scaled_mm(
            rows, self.weight, scale, self.scale.t(), bias=self.bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return y.reshape(*x.shape[:-1], -1)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [M, K] in e4m3, and their scales [M, 1] f32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def fp8_linears(spec: ModelSpec, module: nn.Module) -> set[str]:
    """Names of the linears that a quantized engine has in 4 bits, but for those that read a row per image."""
    return {member for group in spec.groups(module) if not group.weight_only for member in group.members}


def random_module(spec: ModelSpec, fp8: bool, device: str) -> nn.Module:
    """The model with random weights on `device`; a linear that becomes fp8 never has a 16-bit neighbour waiting."""
    module = spec.build(tables=True)
    weights, low = RandomWeights(spec, module, _SEED), fp8_linears(spec, module) if fp8 else set()
    for name in weights.names:
        owner, _, leaf = name.rpartition(".")
        layer = module.get_submodule(owner)
        setattr(layer, leaf, nn.Parameter(weights.read(name, device), requires_grad=False))
        if owner in low and leaf == "weight":
            assert isinstance(layer, nn.Linear)
            parent, _, last = owner.rpartition(".")
            setattr(module.get_submodule(parent), last, Fp8Linear(layer))
    return nn.Module.to(module, device)


def compile_module(module: Any, mode: str | None = None) -> None:
    """Compile what diffusers says is repeated in its module, or the whole, which a mode of torch.compile asks for."""
    if mode is None and module._repeated_blocks:
        module.compile_repeated_blocks()
    else:
        module.compile(mode=mode)


class TorchContender:
    """diffusers' module. Where its class names the repeated blocks these are compiled, once each, else the whole.

    Weights are random: the time does not depend on their values, and no checkpoint is needed.

    Args:
        precision: one of PRECISIONS. feed: gives the inputs by name, on the GPU in the model's dtypes.
        graph: the step as a CUDA graph.
    """

    def __init__(
        self,
        spec: ModelSpec,
        precision: str,
        feed: Callable[[], Mapping[str, Tensor]],
        clock: Clock,
        graph: bool = True,
    ) -> None:
        self.name = f"torch.compile {precision}"
        self._spec, self._fp8, self._feed, self._clock = spec, precision == "fp8", feed, clock
        self._graph = graph
        self._run: Callable[[], Any] | None = None
        self._replay: Callable[[], Any] | None = None

    @torch.no_grad()
    def prepare(self) -> Prepared:
        """Make the module, compile it, and capture it.

        Raises:
            UnsupportedError: a GPU without fp8, or what torch.compile needs is missing.
        """
        if self._fp8 and torch.cuda.get_device_capability(self._clock.device) < _FP8_ARCH:
            raise UnsupportedError("--torch fp8", "a GPU without fp8", "sm_89 or newer")
        self._clock.settle()
        torch.cuda.reset_peak_memory_stats(self._clock.device)
        before, started = self._clock.used_bytes(), self._clock.now()
        module: Any = random_module(self._spec, self._fp8, self._clock.device)
        compile_module(module)
        arguments = self._spec.family.arguments(dict(self._feed()))

        def run() -> Tensor:
            with torch.no_grad():
                y: Tensor = module(**arguments, return_dict=False)[0]
            return y

        try:
            for _ in range(2):  # the first compiles
                run()
            self._run, graph = run, _captured(run) if self._graph else None
            self._replay = graph or run
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # TorchDynamo's and Inductor's are
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UnsupportedError(self.name, reason, "a torch that compiles the model on this GPU") from error
        self._clock.settle()
        memory = self._clock.used_bytes() - before
        facts = {
            "model": self._spec.name,
            "torch": torch.__version__,
            "weights": f"random, seed {_SEED}",
            "peak_bytes": torch.cuda.max_memory_allocated(self._clock.device),
            "graph": graph is not None,
        }
        return Prepared(memory, round(self._clock.now() - started, 3), None, facts)

    def call(self) -> None:
        """One step."""
        assert self._replay is not None
        self._replay()

    def profile(self) -> Profile:
        """Kernels of one step."""
        assert self._run is not None
        kernels = self._clock.kernels(self._run)
        return Profile(by_kind(kernels) if kernels else None, {})

    def close(self) -> None:
        """Let go of the module."""
        self._run = self._replay = None
        gc.collect()  # modules refer to themselves


def _captured(run: Callable[[], Tensor]) -> Callable[[], None] | None:
    """The step as a CUDA graph; None for a forward that copies from the host on its way, as Qwen-Image's does."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None
    return graph.replay
