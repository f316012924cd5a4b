"""The C API's promises: statuses instead of crashes, determinism, streams, graphs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from kernel_calls import BAD_ARGUMENT, OK, WORKSPACE, Library

from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.nn.capi import ACTIVATIONS
from tests.harness.calls import bind, result, run
from tests.harness.linears import assert_same_bits, random_linear

NAMES = ("int4", "w4a8", "nvfp4", "w4a16")


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused(svdq: Library, name: str) -> None:
    linear = random_linear(name, "f16", 17, 72, 128, 32)
    changes = {
        "format": (-1, 4),
        "activation": (-1, len(Activation)),
        "dtype": (-1, 2),
        "act_unsigned": (2, -1),
        "act_shift": (float("nan"), float("inf")),
        "m": (-1,),
        "n": (0, -8, 7, 76),
        "k": (0, 32, 96, -64),
        "r": (-16, 8, 1040),
        "x": (None,),
        "qweight": (None,),
        "wscale": (None,),
        "act_mul": (None,),
        "lora_down": (None,),
        "lora_up": (None,),
        "bias": (None,),
        "wscale2": (None,),
        "y": (None,),
    }
    for field, values in changes.items():
        for value in values:
            call = bind(svdq, linear)
            setattr(call.params, field, value)
            assert call.launch() == BAD_ARGUMENT, f"{field} = {value}"
            assert np.isnan(result(call).astype(np.float64)).all(), f"{field} = {value}: y was written"
    if name != "int4":
        call = bind(svdq, linear)
        call.params.act_unsigned = 1
        assert call.launch() == BAD_ARGUMENT
    for gated in (Activation.GEGLU, Activation.SWIGLU):
        call = bind(svdq, linear)
        call.params.activation = ACTIVATIONS.index(gated)  # 72 / 2 is no multiple of 8
        assert call.launch() == BAD_ARGUMENT
    for field in ("x", "y", "qweight"):
        call = bind(svdq, linear)
        setattr(call.params, field, getattr(call.params, field) + 8)
        assert call.launch() == BAD_ARGUMENT, f"misaligned {field}"
    assert svdq.c.svdq_linear(None, None) == BAD_ARGUMENT


@pytest.mark.parametrize("name", NAMES)
def test_missing_or_small_workspace_is_refused(svdq: Library, name: str) -> None:
    for field, change in (("workspace", lambda _: None), ("workspace_bytes", lambda v: v - 1)):
        call = bind(svdq, random_linear(name, "bf16", 17, 72, 128, 32))
        setattr(call.params, field, change(getattr(call.params, field)))
        assert call.launch() == WORKSPACE


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_launches_nothing(svdq: Library, name: str) -> None:
    call = bind(svdq, random_linear(name, "f16", 0, 72, 128, 32))
    assert call.launch() == OK
    result(call)


def test_workspace_grows_with_every_size(svdq: Library) -> None:
    for fmt in FORMATS.values():
        base = svdq.workspace_bytes(fmt.name, 100, 72, 128, 32)
        assert base > 0
        for bigger in ((129, 72, 128, 32), (100, 720, 128, 32), (100, 72, 256, 32), (100, 72, 128, 64)):
            assert svdq.workspace_bytes(fmt.name, *bigger) >= base
    assert svdq.c.svdq_workspace_bytes(9, 1, 8, 64, 0, ctypes.byref(ctypes.c_size_t())) == BAD_ARGUMENT


def test_supports_knows_formats_and_devices(svdq: Library) -> None:
    import torch

    major, minor = torch.cuda.get_device_capability()
    for fmt in range(4):
        for dtype in range(2):
            assert svdq.c.svdq_supports(fmt, dtype, 10 * major + minor) == 1
    assert svdq.c.svdq_supports(4, 0, 90) == 0
    assert svdq.c.svdq_supports(0, 2, 90) == 0
    assert svdq.c.svdq_supports(0, 0, 70) == 0
    assert svdq.c.svdq_version() == b"1.0.0"


@pytest.mark.parametrize("activation", (Activation.GEGLU, Activation.SWIGLU))
@pytest.mark.parametrize("m", (16, 300))
@pytest.mark.parametrize("name", NAMES)
def test_repeats_streams_and_graphs_are_bit_identical(svdq: Library, name: str, m: int, activation: Activation) -> None:
    import torch

    linear = random_linear(name, "bf16", m, 400, 1024, 64, activation)
    want = run(svdq, linear)

    calls = [bind(svdq, linear) for _ in range(4)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(5):
        for i, call in enumerate(calls):
            assert call.launch(streams[i % 2].cuda_stream) == OK
    for call in calls:
        assert_same_bits(result(call), want)

    call, graph = bind(svdq, linear), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        assert call.launch() == OK
    call.y.fill_(float("nan"))
    for _ in range(3):
        graph.replay()
    assert_same_bits(result(call), want)


@pytest.mark.parametrize("name", NAMES)
def test_halves_equal_the_whole(svdq: Library, name: str) -> None:
    linear = random_linear(name, "f16", 70, 200, 256, 32)
    halves = run(svdq, linear, "svdq_linear_quantize", "svdq_linear_gemm")
    np.testing.assert_array_equal(halves, run(svdq, linear))
