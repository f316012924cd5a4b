"""Few tiles and a long K: several CTAs share a tile (portable/split.cuh). Right, and the same bits every time."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import OK, Library

from svdq_trt.contract.formats import Activation
from tests.harness.calls import assert_right_on_two_streams, bind, result, run
from tests.harness.linears import assert_accurate, assert_bad_rows_stay_alone, assert_same_bits, random_linear

NAMES = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")
PORTABLE = "svdq_linear_portable"  # w4a8 has other kernels on sm_90


@pytest.mark.parametrize(
    ("m", "n", "k", "r", "activation"),
    [
        (19, 72, 512, 0, Activation.SILU),
        (33, 80, 1024, 16, Activation.GEGLU),
        (33, 80, 1024, 16, Activation.SWIGLU),
        (77, 1288, 2048, 32, Activation.NONE),
        (154, 640, 1984, 48, Activation.GELU),
        (511, 200, 12288, 128, Activation.NONE),
    ],
)
@pytest.mark.parametrize("dtype", ("f16", "bf16"))
@pytest.mark.parametrize("name", NAMES)
def test_split_k_matches_reference(
    svdq: Library, name: str, dtype: str, m: int, n: int, k: int, r: int, activation: Activation
) -> None:
    linear = random_linear(name, dtype, m, n, k, r, activation)
    want, got = linear.reference(), run(svdq, linear, PORTABLE)
    assert_accurate(got, want, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_split_k_non_finite_row_is_nan_and_others_are_untouched(svdq: Library, name: str) -> None:
    linear = random_linear(name, "bf16", 35, 72, 1024, 32)
    clean, x = run(svdq, linear, PORTABLE), linear.x.copy()
    x[3, 1000], x[34, 5] = np.nan, np.inf
    got = run(svdq, linear.with_x(x), PORTABLE)
    assert_bad_rows_stay_alone(got, clean, [3, 34])


@pytest.mark.parametrize("name", NAMES)
def test_split_k_is_bit_identical_on_two_streams(svdq: Library, name: str) -> None:
    linears = [random_linear(name, "bf16", m, 328, 2048, 32, seed=m) for m in (154, 18)]
    want = [run(svdq, linear, PORTABLE) for linear in linears]
    assert_right_on_two_streams(lambda: [bind(svdq, linear) for linear in linears], want, entry=PORTABLE)


@pytest.mark.parametrize("name", ("int4", "nvfp4", "w4a16"))
def test_split_k_second_kernel_alone_can_be_repeated_in_a_graph(svdq: Library, name: str) -> None:
    """The counters are 0 again after each call of gemm."""
    import torch

    call = bind(svdq, random_linear(name, "bf16", 154, 328, 2048, 32))
    call.run()
    want = result(call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(25):
            assert call.launch(entry="svdq_linear_gemm") == OK
    for _ in range(4):
        call.y.fill_(float("nan"))
        graph.replay()
        assert_same_bits(result(call), want)
