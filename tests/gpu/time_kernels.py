"""Prints the time of both kernels of each format on given sizes, beside the 16-bit matmul. Not a test."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import torch
from svdq_harness import Call, Library, Linear, split_name

from svdq_trt.contract.formats import Activation, Dtype
from svdq_trt.contract.ops import input_shapes
from svdq_trt.contract.reference.quant import QuantWeight


def random_bytes_linear(name: str, n: int, k: int, r: int) -> Linear:
    """Any codes will do for a clock; quantizing a real weight on the host would take longer than the rest."""
    fmt, unsigned = split_name(name)
    rng = np.random.default_rng(0)
    t = ml_dtypes.bfloat16
    q = rng.integers(-128, 128, (n, k // 2), np.int8)
    shape = input_shapes(fmt, n, k, r)["wscale"]
    scale = np.full(shape, 0.01, t) if fmt.wscale_dtype is Dtype.ACT else rng.integers(1, 19, shape, np.int8)
    down, up = np.full((r, k), 0.01, t), np.full((n, r), 0.01, t)
    weight = QuantWeight(q, scale, np.ones(n, np.float32))
    x, act_mul, bias = np.zeros((8, k), t), np.ones(k, t), np.zeros(n, t)
    return Linear(fmt, "bf16", Activation.NONE, x, weight, act_mul, down, up, bias, unsigned)


def graph_us(calls: list[Call], entry: str) -> float:
    """Median time of one launch in µs, from graphs that rotate over `calls`."""
    graph = torch.cuda.CUDAGraph()
    for c in calls:
        assert c.launch(entry=entry) == 0
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for c in calls:
            c.launch(entry=entry)
    return replay_us(graph) / len(calls)


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    """Median of 20 replays after 3, in µs."""
    times = []
    for _ in range(23):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return sorted(times[3:])[10]


def main() -> None:
    """``time_kernels.py M K N R ...``: several shapes, four numbers each."""
    numbers = [int(a) for a in sys.argv[1:]]
    lib = Library()
    for i in range(0, len(numbers), 4):
        m, k, n, r = numbers[i : i + 4]
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        for _ in range(3):
            x @ w.T
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(4):
                x @ w.T
        print(f"m{m} k{k} n{n} r{r}  bf16 {replay_us(graph) / 4:.1f} us")
        for name in ("int4", "int4u", "w4a8", "nvfp4", "w4a16"):
            small = random_bytes_linear(name, n, k, r)
            call = Call(lib, small)
            size = lib.workspace_bytes(small.fmt.index, m, n, k, r)
            call.keep["x"] = x.clone()
            call.keep["workspace"] = torch.zeros(size, dtype=torch.uint8, device="cuda")
            call.keep["y"] = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            p = call.params
            p.m, p.x, p.y = m, call.keep["x"].data_ptr(), call.keep["y"].data_ptr()
            p.workspace, p.workspace_bytes = call.keep["workspace"].data_ptr(), size
            a, b = (graph_us([call] * 4, f"svdq_linear_{half}") for half in ("quantize", "gemm"))
            print(f"  {name:6} quantize {a:7.1f} us   gemm {b:7.1f} us   {2e-6 * m * n * k / b:6.0f} TOPS")


if __name__ == "__main__":
    main()
