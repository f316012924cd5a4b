"""The portable CUDA kernels, run on the CPU (tests/cpu/emulation), against the fp64 reference.

Small shapes that reach every kernel and tile: what a GPU-less machine can know of addressing, pipelines, layouts
and numerics. Timing, races and the real instructions are for tests/gpu.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import Library

from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.contract.reference.quant import Array
from tests.harness.calls import run
from tests.harness.emulated import last_launch
from tests.harness.linears import Linear, assert_accurate, assert_bad_rows_stay_alone, assert_same_bits, random_linear

NAMES = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")
DTYPES = ("f16", "bf16")


def check(library: Library, linear: Linear) -> Array:
    want, got = linear.reference(), run(library, linear)
    assert_accurate(got, want, linear.dtype)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("m", "n", "k", "r", "activation"),
    [
        (17, 72, 192, 32, Activation.SILU),
        (33, 80, 128, 48, Activation.GEGLU),
        (19, 112, 64, 16, Activation.SWIGLU),
        (70, 136, 320, 0, Activation.NONE),
    ],
)
def test_tiled_kernels(
    library: Library, name: str, dtype: str, m: int, n: int, k: int, r: int, activation: Activation
) -> None:
    check(library, random_linear(name, dtype, m, n, k, r, activation))


@pytest.mark.parametrize("name", NAMES)
def test_large_tile(library: Library, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATION_SMS", "1")  # one multiprocessor: large tiles are chosen for any size
    check(library, random_linear(name, "bf16", 243, 248, 256, 16))
    assert last_launch(library) == (4, 1, 256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("m", "n", "k", "r", "activation", "tiles", "splits"),
    [
        (19, 72, 512, 0, Activation.SILU, 4, 2),  # the small tile
        (33, 80, 1024, 16, Activation.GEGLU, 2, 4),
        (33, 80, 1024, 16, Activation.SWIGLU, 2, 4),
        (70, 136, 832, 32, Activation.NONE, 6, 3),  # steps that do not divide evenly
        (45, 72, 768, 48, Activation.GELU, 2, 3),
        (37, 40, 2048, 128, Activation.NONE, 1, 8),
        (40, 72, 512, 512, Activation.NONE, 2, 2),  # the second split has nothing but steps over R
    ],
)
def test_split_k(
    library: Library,
    name: str,
    m: int,
    n: int,
    k: int,
    r: int,
    activation: Activation,
    tiles: int,
    splits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results are right, with equal bits whichever CTA of a tile comes last, and with the counters left by a call."""
    linear = random_linear(name, "bf16", m, n, k, r, activation)
    got = check(library, linear)
    assert last_launch(library) == (tiles, splits, 128)
    monkeypatch.setenv("EMULATION_BACKWARDS", "1")
    again = run(library, linear, "svdq_linear", "svdq_linear_gemm")
    assert_same_bits(again, got)


@pytest.mark.parametrize("name", NAMES)
def test_split_k_non_finite_row_is_nan_and_others_are_untouched(library: Library, name: str) -> None:
    linear = random_linear(name, "bf16", 35, 72, 1024, 32)
    clean, x = run(library, linear), linear.x.copy()
    assert last_launch(library)[1] > 1
    x[3, 1000], x[34, 5] = np.nan, np.inf
    got = run(library, linear.with_x(x))
    assert_bad_rows_stay_alone(got, clean, [3, 34])


def test_k_is_split_only_where_tiles_are_few(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = random_linear("w4a16", "f16", 65, 136, 1024, 0)
    splits = []
    for multiprocessors in (1, 4, 128):
        monkeypatch.setenv("EMULATION_SMS", str(multiprocessors))
        check(library, linear)
        splits.append(last_launch(library)[1])
    assert splits[0] == 1 and splits[0] <= splits[1] <= splits[2] and splits[2] > 2


def test_workspace_is_bounded_and_grows_with_every_size(library: Library) -> None:
    steps = {"m": (17, 77, 154, 512, 4608), "n": (8, 640, 2560, 12800), "k": (64, 512, 2048, 12288), "r": (0, 16, 128)}
    for fmt in FORMATS:
        for name, values in steps.items():
            sizes = [
                library.workspace_bytes(fmt, *({"m": 154, "n": 1280, "k": 1024, "r": 32} | {name: v}).values())
                for v in values
            ]
            assert sizes == sorted(sizes)
        unsplit = library.workspace_bytes(fmt, 4608, 3072, 448, 0)  # K too short to be split
        assert library.workspace_bytes(fmt, 4608, 24576, 512, 0) - unsplit < (9 << 20) + unsplit / 7


@pytest.mark.parametrize("name", NAMES)
def test_many_rows(library: Library, name: str) -> None:
    """The quantize kernel has another tile from 4096 rows on."""
    check(library, random_linear(name, "f16", 4099, 8, 64, 16))


@pytest.mark.parametrize("m", (1, 2, 5, 8, 9, 16))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemv(library: Library, m: int, dtype: str) -> None:
    check(library, random_linear("w4a16", dtype, m, 72, 320, 32))
    check(library, random_linear("w4a16", dtype, m, 48, 1088, 0, Activation.GEGLU))
    check(library, random_linear("w4a16", dtype, m, 80, 192, 16, Activation.SWIGLU))
    check(library, random_linear("w4a16", dtype, m, 5192, 64, 16, Activation.GELU))


@pytest.mark.parametrize("k", (64, 1024, 4160))
@pytest.mark.parametrize("m", (1, 16))
def test_gemv_chunks_of_k(library: Library, m: int, k: int) -> None:
    check(library, random_linear("w4a16", "f16", m, 24, k, 112, Activation.GELU_TANH))


def test_gemv_rank_of_more_steps_than_warps(library: Library) -> None:
    check(library, random_linear("w4a16", "bf16", 3, 24, 128, 272))


@pytest.mark.parametrize("activation", (Activation.GEGLU, Activation.SWIGLU))
def test_gemv_many_rows_and_chunks(library: Library, activation: Activation) -> None:
    check(library, random_linear("w4a16", "f16", 12, 6160, 576, 16, activation))


@pytest.mark.parametrize(("multiprocessors", "ctas"), ((128, 193), (132, 257)), ids=("64-rows", "48-rows"))
@pytest.mark.parametrize("activation", (Activation.NONE, Activation.GEGLU, Activation.SWIGLU))
@pytest.mark.parametrize("m", (1, 6, 11))
def test_gemv_most_rows(
    library: Library,
    m: int,
    activation: Activation,
    multiprocessors: int,
    ctas: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 rows a CTA, or 48 where they spread more evenly; eight warps for few tokens where shared memory is large."""
    monkeypatch.setenv("EMULATION_SMS", str(multiprocessors))
    linear = random_linear("w4a16", "bf16", m, 12304, 320, 32, activation)
    got = check(library, linear)
    assert last_launch(library)[0] == ctas
    monkeypatch.setenv("EMULATION_SHARED", str(228 << 10))
    assert_same_bits(run(library, linear), got)


def test_gemv_shift(library: Library) -> None:
    linear = random_linear("w4a16", "bf16", 3, 40, 192, 16)
    linear.shift = 0.25
    check(library, linear)


def test_gemv_non_finite_token_is_nan_and_others_are_untouched(library: Library) -> None:
    linear = random_linear("w4a16", "f16", 16, 40, 1088, 32)
    clean, x = run(library, linear), linear.x.copy()
    x[0, 3], x[9, 1087] = np.inf, np.nan
    got = run(library, linear.with_x(x))
    assert_bad_rows_stay_alone(got, clean, [0, 9])


@pytest.mark.parametrize("m", (5, 40))
@pytest.mark.parametrize("name", NAMES)
def test_halves_equal_the_whole(library: Library, name: str, m: int) -> None:
    linear = random_linear(name, "f16", m, 72, 128, 16)
    halves = run(library, linear, "svdq_linear_quantize", "svdq_linear_gemm")
    np.testing.assert_array_equal(halves, run(library, linear))
