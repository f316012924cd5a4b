"""Few tiles and a long K: several CTAs share a tile (sm80/split.cuh). Right, and the same bits every time."""

from __future__ import annotations

import numpy as np
import pytest
from svdq_harness import OK, Call, Library, random_linear, sqnr_db, worst

from svdq_trt.spec.formats import Activation
from svdq_trt.spec.tolerances import KERNEL_ERROR

NAMES = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")
PORTABLE = "svdq_linear_portable"  # w4a8 has other kernels on sm_90


def portable(call: Call) -> np.ndarray:
    assert call.launch(entry=PORTABLE) == OK
    return call.result()


@pytest.mark.parametrize(
    ("m", "n", "k", "r", "activation"),
    [
        (19, 72, 512, 0, Activation.SILU),
        (33, 80, 1024, 16, Activation.GEGLU),
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
    want, got = linear.reference(), portable(Call(svdq, linear))
    db, limit = sqnr_db(want, got), KERNEL_ERROR[dtype]
    assert db >= limit.db, f"{db:.1f} dB, want {limit.db} ({limit.reason}); {worst(want, got)}"


@pytest.mark.parametrize("name", NAMES)
def test_split_k_non_finite_row_is_nan_and_others_are_untouched(svdq: Library, name: str) -> None:
    linear = random_linear(name, "bf16", 35, 72, 1024, 32)
    clean, x = portable(Call(svdq, linear)), linear.x.copy()
    x[3, 1000], x[34, 5] = np.nan, np.inf
    got = portable(Call(svdq, linear.with_x(x)))
    assert np.isnan(got[[3, 34]].astype(np.float64)).all()
    others = np.setdiff1d(np.arange(35), [3, 34])
    np.testing.assert_array_equal(got[others].view(np.int16), clean[others].view(np.int16))


@pytest.mark.parametrize("name", NAMES)
def test_split_k_is_bit_identical_on_two_streams(svdq: Library, name: str) -> None:
    """A hundred calls by turns on two streams, each stream with its own workspace: every y is compared."""
    import torch

    linears = [random_linear(name, "bf16", m, 328, 2048, 32, seed=m) for m in (154, 18)]
    want = [torch.from_numpy(portable(Call(svdq, linear)).view(np.int16)).cuda() for linear in linears]
    streams = [torch.cuda.Stream() for _ in range(2)]
    calls = [[Call(svdq, linear) for linear in linears] for _ in streams]
    wrong = [torch.zeros((), dtype=torch.bool, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, mine, flag in zip(streams, calls, wrong, strict=True):
            with torch.cuda.stream(stream):
                for call, expected in zip(mine, want, strict=True):
                    call.keep["workspace"].fill_(255)
                    assert call.launch(stream.cuda_stream, PORTABLE) == OK
                    y = call.keep["y"].view(torch.int16)
                    guard = (y.shape[0] - expected.shape[0]) // 2
                    flag.logical_or_((y[guard:-guard] != expected).any())
    torch.cuda.synchronize()
    assert not any(bool(flag) for flag in wrong)


@pytest.mark.parametrize("name", ("int4", "nvfp4", "w4a16"))
def test_split_k_second_kernel_alone_can_be_repeated_in_a_graph(svdq: Library, name: str) -> None:
    """The counters are 0 again after each call of kernel (b)."""
    import torch

    call = Call(svdq, random_linear(name, "bf16", 154, 328, 2048, 32))
    want = call.run().copy()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(25):
            assert call.launch(entry="svdq_linear_gemm") == OK
    for _ in range(4):
        call.keep["y"].fill_(float("nan"))
        graph.replay()
        np.testing.assert_array_equal(call.result().view(np.int16), want.view(np.int16))
