"""svdq_mlp, run on the CPU (tests/cpu/emulation), against two calls of svdq_linear."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulated import run, run_mlp
from mlp_harness import Mlp, random_mlp

from svdq_trt.nn.capi import MlpParams
from svdq_trt.ref.quant import Array
from svdq_trt.spec.formats import Activation

NAMES = ("int4", "int4u", "nvfp4")
DTYPES = ("f16", "bf16")
ACTIVATIONS = (Activation.GELU, Activation.GELU_TANH, Activation.GEGLU)


def chain(library: ctypes.CDLL, mlp: Mlp) -> Array:
    """y of two calls."""
    return run(library, mlp.fc2.with_x(run(library, mlp.fc1)))


def assert_same_bits(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(a.view(np.int16), b.view(np.int16))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_few_tokens_equal_two_linears(library: ctypes.CDLL, name: str, dtype: str, activation: Activation) -> None:
    mlp = random_mlp(name, dtype, 19, 128, 192, 72, (16, 32), activation)
    assert_same_bits(run_mlp(library, mlp), chain(library, mlp))


def test_bad_arguments_are_refused(library: ctypes.CDLL) -> None:
    def status(**changes: object) -> int:
        p = MlpParams()
        for linear, n, k in ((p.fc1, 384, 128), (p.fc2, 72, 192)):
            linear.m, linear.n, linear.k, linear.r, linear.activation = 8, n, k, 16, 0
        p.fc1.activation = 4
        for name, value in changes.items():
            linear, field = name.split("_", 1)
            setattr(getattr(p, linear), field, value)
        return library.svdq_mlp_workspace_bytes(ctypes.byref(p), ctypes.byref(ctypes.c_size_t()))

    assert status() == 0
    bad = {
        "fc1_format": (1, 2, 3), "fc2_format": (1, 2, 3), "fc1_activation": (0, 1, 3), "fc2_activation": (1, 4),
        "fc1_n": (192, 376), "fc2_n": (0, 7), "fc1_k": (96,), "fc2_k": (384, 128), "fc1_m": (9, -1), "fc2_m": (0,),
        "fc1_r": (8,), "fc2_r": (1040,),
    }  # fmt: skip
    for name, values in bad.items():
        for value in values:
            assert status(**{name: value}) == 1, f"{name} = {value}"
    assert library.svdq_mlp_workspace_bytes(None, ctypes.byref(ctypes.c_size_t())) == 1
    assert library.svdq_mlp(None, None) == 1
