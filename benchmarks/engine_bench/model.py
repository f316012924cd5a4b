"""The model under test: weights, inputs, and quantization that is quick on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.checkpoint.load import set_parameter
from svdq_trt.checkpoint.random_weights import RandomWeights, fill_random
from svdq_trt.contract.formats import W4A16, Format
from svdq_trt.contract.ops import CONSTANTS
from svdq_trt.contract.weights import SvdqWeights, torch_dtype
from svdq_trt.models import LinearGroup, ModelSpec
from svdq_trt.models.recipe import member_tensors, node_input
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize.layer import QuantizedLinear, quantize_group
from svdq_trt.quantize.preset import Preset

INPUT_SEED = 20_241_107
CALIBRATION_TOKENS = 512
THREADS = 6  # threads that quantize on one GPU

#: half the candidates of `fast`: the benchmark measures the engine's speed, not the search
PRESET = Preset("bench", grids=2, tokens=192, rows=1024, search_power_iterations=1, power_iterations=2)


def random_module(spec: ModelSpec, seed: int, device: str = "cpu", threads: int = 16) -> nn.Module:
    """A module with weights as from ``--random-weights SEED``; the same on the CPU, filled by several threads."""
    module = spec.build()
    if device != "cpu":
        fill_random(spec, module, seed, device=device)
        return module
    weights = RandomWeights(spec, module, seed)  # each has its own seed
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda name: set_parameter(module, name, weights.read(name)), weights.names))
    return module


def blank_module(spec: ModelSpec, fmt: Format | None, rank: int, skip: Sequence[str] = ()) -> nn.Module:
    """The module, quantized to `fmt` or not, with weights that are never written and so take no memory."""
    module = spec.build()
    if fmt is None:
        return module.to_empty(device="cpu")
    groups = spec.groups(module, skip)
    sources = [member_tensors(module, group)[0] for group in groups]  # before any node is installed
    for group, weights in zip(groups, sources, strict=True):
        chosen = W4A16 if group.weight_only else fmt
        n, k = sum(len(weight) for weight in weights), weights[0].shape[1]
        tensors: dict[str, Any] = {
            t.name: torch.empty(
                t.shape_of(chosen, n, k, group.rank(rank)),
                dtype=torch_dtype(t.dtype_of(chosen), spec.torch_dtype),
                device="meta",
            )
            for t in CONSTANTS
        }
        spec.install(module, group, SVDQLinear(SvdqWeights(**tensors, format=chosen, activation=group.activation)))
    return module.to_empty(device="cpu")


def inputs_of(spec: ModelSpec, sizes: Mapping[str, Any], device: str) -> tuple[torch.Tensor, ...]:
    """The benchmark's inputs; equal for every engine and reference."""
    return tuple(t.to(device) for t in spec.example_inputs(**sizes, seed=INPUT_SEED))


@torch.no_grad()
def quantize(
    module: nn.Module, spec: ModelSpec, fmt: Format, rank: int, skip: Sequence[str] = (), samples: int = 2
) -> list[Node]:
    """Calibrate with 16-bit forwards on synthetic inputs and quantize, in place, on the module's device."""
    groups = spec.groups(module, skip)
    device = next(module.parameters()).device
    amax, tokens = _calibrate(module, spec, groups, samples, device)
    sources = {group.node: member_tensors(module, group) for group in groups}  # before any node is installed

    def one(group: LinearGroup) -> tuple[QuantizedLinear, tuple[int, ...]]:
        weights, biases = sources.pop(group.node)
        with torch.no_grad():
            quantized = quantize_group(
                weights,
                biases,
                tokens[group.node],
                W4A16 if group.weight_only else fmt,
                group.rank(rank),
                act_dtype=spec.torch_dtype,
                name=group.node,
                activation=group.activation,
                x_absmax=amax[group.node],
                preset=PRESET,
            )
        if device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return quantized, tuple(len(weight) for weight in weights)

    nodes = []
    first = one(groups[0])  # linear algebra libraries set themselves up in the first call, which must run alone
    pool = ThreadPoolExecutor(THREADS, initializer=_own_stream) if device.type == "cuda" else ThreadPoolExecutor(1)
    with pool:
        done = itertools.chain([first], pool.map(one, groups[1:]))
        for group, (quantized, rows) in zip(groups, done, strict=True):
            nodes.append(quantized.node(group.members, rows))
            spec.install(module, group, quantized.module())
    return nodes


def _own_stream() -> None:
    """Give the calling thread a stream of its own, so that the threads' many small kernels overlap."""
    torch.cuda.set_stream(torch.cuda.Stream())


def _calibrate(
    module: nn.Module, spec: ModelSpec, groups: tuple[LinearGroup, ...], samples: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Collect absmax [K] and rows [T, K] of every group's x."""
    amax: dict[str, torch.Tensor] = {}
    rows: dict[str, list[torch.Tensor]] = {group.node: [] for group in groups}

    def watch(group: LinearGroup) -> Any:
        node = group.node

        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = node_input(layer, group, args[0])
            top = x.abs().amax(0).float()
            amax[node] = torch.maximum(amax[node], top) if node in amax else top
            chosen = torch.randint(len(x), (CALIBRATION_TOKENS // samples,), device=x.device)
            rows[node].append(x[chosen])

        return hook

    hooks = [module.get_submodule(g.members[0]).register_forward_pre_hook(watch(g)) for g in groups]
    flat, pixels = spec.wrap(module), spec.calibration_pixels
    torch.manual_seed(0)
    for i in range(samples):
        noise = 1 - (i + 0.5) / samples
        inputs = spec.example_inputs(batch=1, height=pixels, width=pixels, seed=i, noise=noise)
        flat(*(t.to(device) for t in inputs))
    for hook in hooks:
        hook.remove()
    tokens = {node: torch.cat(parts) for node, parts in rows.items()}
    if device.type == "cuda":
        torch.cuda.synchronize()  # the threads' streams do not wait for this one
    return amax, tokens
