"""Which code rounds on a GPU: the kernel where it runs, else the loop, with one note that says why."""

from __future__ import annotations

import errno
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from svdq_trt.build.stages.quantize import notes
from svdq_trt.quantize import gptq

DEVICE = torch.device("cpu")  # in a GPU's place


@pytest.fixture
def kernel(monkeypatch):
    """Put a function in the kernel's place; nothing has been tried yet."""

    def put(round_block):
        monkeypatch.setitem(sys.modules, "svdq_trt.quantize.gptq_triton", SimpleNamespace(round_block=round_block))
        gptq._tried.cache_clear()

    yield put
    gptq._tried.cache_clear()


def test_kernel_that_runs_is_taken_and_tried_once(kernel):
    calls = []
    kernel(lambda *args: calls.append([tuple(t.shape) for t in args if isinstance(t, torch.Tensor)]))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: gptq.rounding_on(DEVICE), range(8)))
    assert len(calls) == 1 and set(calls[0]) == {(gptq.BLOCK, gptq.BLOCK)}
    want = sys.modules["svdq_trt.quantize.gptq_triton"].round_block
    assert {f.note for f in found} == {""} and found[0].block is want


def test_kernel_that_does_not_compile_leaves_the_loop_and_a_note(kernel):
    tries = []

    def fail(*_):
        tries.append(1)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    kernel(fail)
    first, second = gptq.rounding_on(DEVICE), gptq.rounding_on(DEVICE)
    assert first is second and first.block is gptq._round_block and len(tries) == 1
    assert "(Failed to find C compiler. Please specify via CC environment variable.)" in first.note
    assert "\n" not in first.note


def test_no_triton_leaves_the_loop(kernel, monkeypatch):
    kernel(None)
    monkeypatch.setitem(sys.modules, "svdq_trt.quantize.gptq_triton", None)  # import raises ImportError
    assert gptq.rounding_on(DEVICE).block is gptq._round_block


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")],
)
def test_lack_of_memory_is_no_reason_for_the_loop(kernel, error):
    def fail(*_):
        raise error

    kernel(fail)
    with pytest.raises(type(error)):
        gptq.rounding_on(DEVICE)


def test_note_is_reported_where_gptq_ran_on_a_gpu(monkeypatch):
    monkeypatch.setattr(gptq, "rounding_on", lambda device: gptq.Rounding(gptq._round_block, "slow"))
    assert notes("default", torch.device("cuda")) == ("slow",)
    assert notes("fast", torch.device("cuda")) == notes("default", torch.device("cpu")) == ()
