"""svdq_mlp, run on the CPU (tests/cpu/emulation), against two calls of svdq_linear."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from kernel_calls import Library

from svdq_trt.contract.formats import Activation
from svdq_trt.contract.reference.quant import Array
from svdq_trt.nn import capi
from svdq_trt.nn.capi import MlpParams
from tests.harness.calls import chain, run
from tests.harness.emulated import launches
from tests.harness.linears import Mlp, assert_accurate, assert_bad_rows_stay_alone, assert_same_bits, random_mlp

NAMES = ("int4", "int4u", "nvfp4")
DTYPES = ("f16", "bf16")
ACTIVATIONS = (Activation.GELU, Activation.GELU_TANH, Activation.GEGLU, Activation.SWIGLU)


def check_fused(library: Library, mlp: Mlp) -> Array:
    """Codes and scales of the hidden are the chain's, bit for bit; y is right and the same in any order of CTAs."""
    no_up = mlp.without_up()
    assert_same_bits(run(library, no_up), chain(library, no_up))
    before = launches(library)
    got = run(library, mlp)
    rank = mlp.fc2.lora_down.shape[0]
    assert launches(library) - before == (4 if rank else 3), "the chain ran"
    assert_accurate(got, mlp.fc2.with_x(run(library, mlp.fc1)).reference(), mlp.fc1.dtype)
    if not rank:
        assert_same_bits(got, chain(library, mlp))
    return got


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_fused_large_tile(
    library: Library, name: str, dtype: str, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiles of M, the second ragged; of N too where one linear makes two blocks of a tile's columns."""
    monkeypatch.setenv("EMULATION_SMS", "1")  # one multiprocessor: large tiles are chosen for any size
    mlp = random_mlp(name, dtype, 205, 128, 192, 72, (16, 32), activation)
    got = check_fused(library, mlp)
    monkeypatch.setenv("EMULATION_BACKWARDS", "1")
    assert_same_bits(run(library, mlp), got)


@pytest.mark.parametrize("rank", (0, 16, 48, 64))
@pytest.mark.parametrize("name", NAMES)
def test_fused_every_rank(library: Library, name: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATION_SMS", "1")
    check_fused(library, random_mlp(name, "bf16", 133, 64, 320, 40, (0, rank), Activation.GELU_TANH))


@pytest.mark.parametrize("activation", (Activation.GELU, Activation.GELU_TANH))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_fused_medium_tile(library: Library, name: str, dtype: str, activation: Activation) -> None:
    check_fused(library, random_mlp(name, dtype, 77, 192, 256, 72, (48, 32), activation))


@pytest.mark.parametrize("name", NAMES)
def test_fused_hidden_whose_product_is_split(library: Library, name: str) -> None:
    """fc2's K is shared by several CTAs, whose counters fc1's kernel has set to 0."""
    check_fused(library, random_mlp(name, "bf16", 70, 128, 1024, 72, (16, 16), Activation.GELU))


@pytest.mark.parametrize("activation", (Activation.GELU, Activation.GEGLU, Activation.SWIGLU))
@pytest.mark.parametrize("name", NAMES)
def test_fused_non_finite_row_is_nan_and_others_are_untouched(
    library: Library, name: str, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATION_SMS", "1")
    mlp = random_mlp(name, "f16", 131, 128, 192, 40, (16, 16), activation)
    clean, x = run(library, mlp), mlp.fc1.x.copy()
    x[3, 100], x[130, 5] = np.nan, np.inf
    got = run(library, mlp.with_x(x))
    assert_bad_rows_stay_alone(got, clean, [3, 130])


@pytest.mark.parametrize("activation", (Activation.GEGLU, Activation.SWIGLU))
def test_many_tokens_are_fused_for_any_multiprocessor(
    library: Library, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATION_SMS", "256")
    check_fused(library, random_mlp("int4", "f16", 2050, 64, 64, 8, (0, 16), activation))


@pytest.mark.parametrize(
    ("rank", "activation"), ((80, Activation.GELU), (48, Activation.GEGLU), (48, Activation.SWIGLU))
)
def test_large_rank_equals_two_linears(
    library: Library, rank: int, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of t would take more bytes than the 16-bit hidden: the chain."""
    monkeypatch.setenv("EMULATION_SMS", "1")
    mlp = random_mlp("int4", "f16", 130, 64, 128, 40, (16, rank), activation)
    assert_same_bits(run(library, mlp), chain(library, mlp))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_few_tokens_equal_two_linears(library: Library, name: str, dtype: str, activation: Activation) -> None:
    mlp = random_mlp(name, dtype, 19, 128, 192, 72, (16, 32), activation)
    assert_same_bits(run(library, mlp), chain(library, mlp))


def workspace(
    library: Library, m: int, k: int, hidden: int, n: int, r: int, activation: Activation = Activation.GELU
) -> int:
    p = MlpParams()
    p.fc1.m, p.fc1.n, p.fc1.k, p.fc1.r = m, hidden * activation.rows_per_feature, k, r
    p.fc1.activation = capi.ACTIVATIONS.index(activation)
    p.fc2.m, p.fc2.n, p.fc2.k, p.fc2.r = m, n, hidden, r
    return library.mlp_workspace_bytes(p)


def test_workspace_grows_with_every_size(library: Library) -> None:
    steps = {
        "m": (19, 77, 2047, 2048, 2176, 4608),
        "k": (64, 512, 2048),
        "hidden": (64, 1024, 5120),
        "n": (8, 1280),
        "r": (0, 32, 64),
    }
    for name, values in steps.items():
        for m in (154, 4096):
            base = {"m": m, "k": 1024, "hidden": 1024, "n": 1280, "r": 32}
            sizes = [workspace(library, **(base | {name: v})) for v in values]
            assert sizes == sorted(sizes), name


@pytest.mark.parametrize(
    ("m", "k", "hidden", "n", "activation", "share"),
    [
        (4608, 3072, 12288, 3072, Activation.GELU_TANH, 0.65),
        (8192, 1152, 4608, 1152, Activation.GELU_TANH, 0.65),
        (8192, 640, 2560, 640, Activation.GEGLU, 0.94),
        (8192, 640, 2560, 640, Activation.SWIGLU, 0.94),
    ],
)
def test_workspace_of_many_tokens_is_smaller_than_two_linears(
    library: Library, m: int, k: int, hidden: int, n: int, activation: Activation, share: float
) -> None:
    """`share` of the hidden in 16 bit and the larger workspace of two calls."""
    outputs = hidden * activation.rows_per_feature
    sizes = [library.workspace_bytes("int4", m, *shape, 32) for shape in ((outputs, k), (n, hidden))]
    two = 2 * m * hidden + max(sizes)
    assert workspace(library, m, k, hidden, n, 32, activation) < share * two


def test_bad_arguments_are_refused(library: Library) -> None:
    def status(**changes: object) -> int:
        p = MlpParams()
        for linear, n, k in ((p.fc1, 384, 128), (p.fc2, 72, 192)):
            linear.m, linear.n, linear.k, linear.r, linear.activation = 8, n, k, 16, 0
        p.fc1.activation = capi.ACTIVATIONS.index(Activation.GEGLU)
        for name, value in changes.items():
            linear, field = name.split("_", 1)
            setattr(getattr(p, linear), field, value)
        return library.c.svdq_mlp_workspace_bytes(ctypes.byref(p), ctypes.byref(ctypes.c_size_t()))

    assert status() == 0 and status(fc1_activation=capi.ACTIVATIONS.index(Activation.SWIGLU)) == 0
    bad = {
        "fc1_format": (1, 2, 3),
        "fc2_format": (1, 2, 3),
        "fc1_activation": (0, 1, 3, -1, len(Activation)),
        "fc2_activation": (1, 4, -1, len(Activation)),
        "fc1_n": (192, 376),
        "fc2_n": (0, 7),
        "fc1_k": (96,),
        "fc2_k": (384, 128),
        "fc1_m": (9, -1),
        "fc2_m": (0,),
        "fc1_r": (8,),
        "fc2_r": (1040,),
    }
    for name, values in bad.items():
        for value in values:
            assert status(**{name: value}) == 1, f"{name} = {value}"
    assert library.c.svdq_mlp_workspace_bytes(None, ctypes.byref(ctypes.c_size_t())) == 1
    assert library.c.svdq_mlp(None, None) == 1
