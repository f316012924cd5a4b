"""Session of an engine in pieces: its buffers, its graphs and its decisions, with ONNX Runtime in TensorRT's place."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.contract.step_cache import PIECES
from svdq_trt.engine.last_errors import LastErrors
from svdq_trt.models import get_model
from svdq_trt.runtime import OnnxSession, Session, SharedActivations
from svdq_trt.runtime.opening import Opened
from tests.harness.fake_engine import MODULE, Engine, HostMemory, on_host
from tests.harness.in_pieces import FIXED, write_folder

SPEC = get_model("pixart-tiny")  # in f16, which ONNX Runtime's CPU runs as it is
SIZES = {symbol: low for symbol, (low, *_) in FIXED.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pixart")
    write_folder(out, SPEC, FIXED)
    return out


@pytest.fixture
def opened(folder, monkeypatch):
    """A function that opens a Session of the pieces; it returns its memory, too, which is that of all."""
    memory = HostMemory()

    def open_session(activations_of_each=256, **options):
        engines = tuple(Engine(folder / f"{piece}.onnx", memory, activations_of_each) for piece in PIECES)
        plans = tuple(SimpleNamespace(file=f"{piece}.plan", sha256="") for piece in PIECES)
        backend, logger = SimpleNamespace(module=MODULE, version="1"), SimpleNamespace(errors=LastErrors())
        found = Opened(folder, manifest.read(folder), backend, plans, engines, logger, {})
        on_host(monkeypatch, memory, lambda *_, **__: found)
        return Session(folder, **options), memory, engines

    return open_session


def feed(seed, noise=0.5):
    values = SPEC.example_inputs(**SIZES, seed=seed, noise=noise)
    return {io.name: value for io, value in zip(SPEC.inputs, values, strict=True)}


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_takes_the_same_steps_as_in_onnx_runtime(folder, opened, cuda_graph):
    session, memory, (head, tail, end) = opened(cuda_graph=cuda_graph)
    other = OnnxSession(folder)
    assert [p.name for p in session.inputs] == [io.name for io in SPEC.inputs]
    assert session.output_names == [io.name for io in SPEC.outputs]
    for threshold in (0.0, 0.5, 100.0):
        session.step_cache = other.step_cache = threshold
        for one in (feed(1), feed(1), feed(2), feed(1, noise=0.4), feed(1)):
            got, want = (s.run(one)["out_hidden_states"].clone() for s in (session, other))
            assert torch.equal(got, want) and session.skipped == other.skipped
    assert session.skipped == 4
    assert (head.runs, end.runs) == (15, 15) and 6 < tail.runs < 15
    assert memory.captures == (3 if cuda_graph else 0)
    session.close()


def test_a_picture_begins_anew_after_a_reset(opened):
    session, _, (_, tail, _) = opened()
    session.step_cache = 100.0
    for _ in range(2):
        session.run(feed(1))
        session.reset()
    assert (tail.runs, session.skipped) == (2, 0)


def test_sessions_share_memory_for_activations(opened):
    (alone, *_), shared = opened(), SharedActivations()
    want = alone.run(feed(1))["out_hidden_states"].clone()
    one, memory, _ = opened(activations=shared, cuda_graph=True)
    for _ in range(3):
        one.run(feed(1))
    assert (shared.bytes, memory.captures) == (256, 3)
    other, *_ = opened(activations_of_each=512, activations=shared)
    for session in (other, one, one):
        assert torch.equal(session.run(feed(1))["out_hidden_states"], want)
    assert (shared.bytes, memory.captures) == (512, 6), "a graph has the address of the memory that is gone"


def test_memory_for_activations_is_allocated_once_for_all_that_are_open(opened):
    shared = SharedActivations()
    small, large = (opened(activations_of_each=count, activations=shared)[0] for count in (256, 512))
    assert shared.buffer is None
    for session in (small, large, small):
        session.run(feed(1))
        assert (shared.bytes, shared.number) == (512, 1)


def test_a_shared_buffer_that_is_too_small_is_freed_before_the_next(opened, monkeypatch):
    shared = SharedActivations()
    one, memory, _ = opened(activations=shared)
    want = one.run(feed(1))["out_hidden_states"].clone()
    old, allocate = weakref.ref(shared.buffer), memory.allocate
    memory.buffers.pop(shared.buffer.data_ptr())

    other, *_ = opened(activations_of_each=512, activations=shared)

    def short(dtype, count):
        assert old() is None
        if count == 512:
            raise MemoryError
        return allocate(dtype, count)

    monkeypatch.setattr(memory, "allocate", short)
    with pytest.raises(MemoryError):
        other.run(feed(1))
    assert torch.equal(one.run(feed(1))["out_hidden_states"], want), "it takes as much as it needs"
    assert shared.bytes == 256


def test_sessions_on_two_gpus_share_no_memory(opened):
    shared = SharedActivations()
    opened(activations=shared, device=1)
    with pytest.raises(UsageError, match="activations: shared by sessions on cuda:1 and cuda:0, want"):
        opened(activations=shared)


def test_needs_torch(opened):
    session, *_ = opened()
    session.memory = "pycuda"
    with pytest.raises(UnsupportedError, match="step_cache: memory='pycuda', want memory='torch'"):
        session.step_cache = 0.1
