"""svdq_mlp against two calls of svdq_linear: the hidden's codes and scales bit for bit, y in dB, and the same bits
every time. Small M runs the chain, larger ones a kernel that quantizes the hidden itself.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from kernel_calls import BAD_ARGUMENT, OK, WORKSPACE, Library

from svdq_trt.contract.formats import Activation
from tests.harness.calls import assert_right_on_two_streams, bind_two, chain, result, run
from tests.harness.linears import Mlp, assert_accurate, assert_bad_rows_stay_alone, assert_same_bits, random_mlp

NAMES = ("int4", "int4u", "nvfp4")
DTYPES = ("f16", "bf16")
ACTIVATIONS = (Activation.GELU, Activation.GELU_TANH, Activation.GEGLU, Activation.SWIGLU)


def check(lib: Library, mlp: Mlp, by_chain: bool = False) -> None:
    """`by_chain`: two calls are the reference, for shapes where fp64 on the host takes too long."""
    no_up = mlp.without_up()
    assert_same_bits(run(lib, no_up), chain(lib, no_up))
    got = run(lib, mlp)
    want = chain(lib, mlp) if by_chain else mlp.fc2.with_x(run(lib, mlp.fc1)).reference()
    assert_accurate(got, want, mlp.fc1.dtype)
    if not mlp.fc2.lora_down.shape[0]:
        assert_same_bits(got, chain(lib, mlp))


@pytest.mark.parametrize(
    ("m", "k", "hidden", "n"),
    [(1, 64, 64, 8), (19, 128, 192, 72), (77, 192, 256, 72), (300, 448, 1088, 136), (2050, 128, 192, 72)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_mlp_equals_two_linears(
    svdq: Library, name: str, dtype: str, activation: Activation, m: int, k: int, hidden: int, n: int
) -> None:
    check(svdq, random_mlp(name, dtype, m, k, hidden, n, (16, 32), activation))


@pytest.mark.parametrize("ranks", ((0, 0), (32, 0), (0, 16), (16, 48), (64, 128), (16, 144), (0, 1024)), ids=str)
@pytest.mark.parametrize("m", (200, 2177))
@pytest.mark.parametrize("name", NAMES)
def test_mlp_every_rank(svdq: Library, name: str, m: int, ranks: tuple[int, int]) -> None:
    check(svdq, random_mlp(name, "bf16", m, 128, 320, 40, ranks, Activation.GELU_TANH))


@pytest.mark.parametrize(
    ("m", "k", "hidden", "n", "activation"),
    [
        (2048, 1280, 5120, 1280, Activation.GEGLU),
        (1024, 1280, 5120, 1280, Activation.GEGLU),
        (4096, 1280, 3456, 1280, Activation.SWIGLU),
        (4096, 1152, 4608, 1152, Activation.GELU_TANH),
        (512, 1536, 6144, 1536, Activation.GELU),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_mlp_of_models_equals_two_linears(
    svdq: Library, name: str, m: int, k: int, hidden: int, n: int, activation: Activation
) -> None:
    check(svdq, random_mlp(name, "bf16", m, k, hidden, n, (32, 32), activation), by_chain=True)


@pytest.mark.parametrize("activation", (Activation.GELU, Activation.GEGLU, Activation.SWIGLU))
@pytest.mark.parametrize("m", (40, 300, 2100))
@pytest.mark.parametrize("name", NAMES)
def test_mlp_non_finite_row_is_nan_and_others_are_untouched(
    svdq: Library, name: str, m: int, activation: Activation
) -> None:
    mlp = random_mlp(name, "f16", m, 128, 192, 72, (16, 16), activation)
    clean, x = run(svdq, mlp), mlp.fc1.x.copy()
    assert np.isfinite(clean.astype(np.float64)).all()
    x[3, 100], x[m - 1, 5] = np.nan, -np.inf
    got = run(svdq, mlp.with_x(x))
    assert_bad_rows_stay_alone(got, clean, [3, m - 1])


@pytest.mark.parametrize("name", NAMES)
def test_mlp_is_bit_identical_on_two_streams(svdq: Library, name: str) -> None:
    mlps = [random_mlp(name, "bf16", m, 640, 1280, 328, (32, 32), Activation.GELU) for m in (2100, 400)]
    want = [run(svdq, mlp) for mlp in mlps]
    assert_right_on_two_streams(lambda: [bind_two(svdq, mlp) for mlp in mlps], want)


@pytest.mark.parametrize("m", (17, 300, 2100))
@pytest.mark.parametrize("name", NAMES)
def test_mlp_in_a_graph(svdq: Library, name: str, m: int) -> None:
    import torch

    call = bind_two(svdq, random_mlp(name, "f16", m, 256, 512, 136, (16, 32), Activation.GEGLU))
    call.run()
    want = result(call)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(10):
            assert call.launch() == OK
    for _ in range(10):
        call.y.fill_(float("nan"))
        graph.replay()
        assert_same_bits(result(call), want)


def test_mlp_bad_arguments_are_refused(svdq: Library) -> None:
    mlp = random_mlp("int4", "f16", 33, 128, 192, 72, (16, 16), Activation.GELU)
    changes = {
        "fc1": {
            "format": (1, 2, 3),
            "activation": (0, 3),
            "dtype": (1, 2),
            "act_unsigned": (2,),
            "act_shift": (np.nan,),
            "m": (-1, 34),
            "n": (200, 64),
            "k": (96,),
            "r": (8,),
            "x": (None,),
            "qweight": (None,),
            "lora_up": (None,),
        },
        "fc2": {
            "format": (1, 2, 3),
            "activation": (1, 4),
            "dtype": (1, 2),
            "act_unsigned": (2,),
            "act_shift": (np.inf,),
            "m": (32,),
            "n": (0, 7),
            "k": (128,),
            "r": (1040,),
            "y": (None,),
            "wscale": (None,),
            "lora_down": (None,),
        },
    }
    for linear, fields in changes.items():
        for field, values in fields.items():
            for value in values:
                call = bind_two(svdq, mlp)
                setattr(getattr(call.params, linear), field, value)
                assert call.launch() == BAD_ARGUMENT, f"{linear}.{field} = {value}"
                assert np.isnan(result(call).astype(np.float64)).all(), "y was written"
    for field, change in (("workspace", lambda _: None), ("workspace_bytes", lambda v: v - 1)):
        call = bind_two(svdq, mlp)
        setattr(call.params, field, change(getattr(call.params, field)))
        assert call.launch() == WORKSPACE
    assert svdq.c.svdq_mlp(None, None) == BAD_ARGUMENT
    assert svdq.c.svdq_mlp_workspace_bytes(ctypes.byref(bind_two(svdq, mlp).params), None) == BAD_ARGUMENT


def test_mlp_without_tokens_launches_nothing(svdq: Library) -> None:
    call = bind_two(svdq, random_mlp("nvfp4", "f16", 0, 128, 192, 72, (16, 16), Activation.GELU))
    assert call.launch() == OK
