"""An engine in pieces in TensorRT on a GPU, against its graph in ONNX Runtime.

SVDQ_TEST_ENGINE names the folder, as `svdq-trt build --model flux1-tiny --random-weights 0 --step-cache` writes it;
SVDQ_TEST_HOST_CODE=1 runs the folder's plugin library.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from svdq_trt.artifact import manifest, svdq_file
from svdq_trt.models import get_model
from svdq_trt.nn.restore import restore_model

OPTIONS = {"allow_arch_mismatch": True, "allow_host_code": os.environ.get("SVDQ_TEST_HOST_CODE") == "1"}
STEPS = 8


@pytest.fixture(scope="module")
def engine(folder):
    if not manifest.read(folder).onnx.pieces:
        pytest.skip("SVDQ_TEST_ENGINE names no engine folder with a step cache")
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["kernels", "graph"])
def session(engine, request):
    from svdq_trt.runtime import Session

    with Session(engine, cuda_graph=request.param, **OPTIONS) as opened:
        yield opened


def feeds(session):
    """The inputs of each step of a picture."""
    spec = get_model(session.model)
    sizes = spec.built_sizes(session.manifest, 0)
    steps = [spec.example_inputs(**sizes, seed=3, noise=1 - i / STEPS) for i in range(STEPS)]
    return [{io.name: value.cuda() for io, value in zip(spec.inputs, values, strict=True)} for values in steps]


def steps_of(session, threshold):
    """The outputs of each step, and whether it was skipped."""
    session.step_cache = threshold
    outputs, counts = [], [0]
    for feed in feeds(session):
        (out,) = session.run(feed).values()
        outputs.append(out.double().cpu())
        counts.append(session.skipped)
    return outputs, [after > before for before, after in itertools.pairwise(counts)]


def test_every_step_is_the_graphs(session, engine):
    from svdq_trt.runtime import OnnxSession

    got, skipped = steps_of(session, 0.0)
    assert not any(skipped)
    module = in_torch(engine)
    with OnnxSession(engine) as other:
        for feed, out in zip(feeds(session), got, strict=True):
            (want,) = other.run({name: value.cpu() for name, value in feed.items()}).values()
            assert sqnr(want.double(), out) > sqnr(want.double(), module(feed)) - 1


def in_torch(engine):
    """The quantized module, whose roundings to bfloat16 leave random weights as little of float32's output."""
    spec = get_model(manifest.read(engine).model)
    module = restore_model(svdq_file.load(engine / "svdq.safetensors"), spec)
    wrapped = spec.wrap(torch.nn.Module.to(module, "cuda"))

    def run(feed):
        with torch.no_grad():
            return wrapped(*feed.values()).double().cpu()

    return run


def test_a_threshold_of_nothing_skips_nothing_and_changes_no_bit(session):
    want, _ = steps_of(session, 0.0)
    got, skipped = steps_of(session, 1e-12)
    assert not any(skipped) and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_skipped_steps_have_the_first_steps_blocks(session):
    """Equal steps: what is skipped is what would be computed, up to one rounding of x2 - x1."""
    (feed, *_) = feeds(session)
    session.step_cache = 0.0
    (want,) = (out.double().cpu() for out in session.run(feed).values())
    session.step_cache = 0.1
    for _ in range(4):
        (got,) = (out.double().cpu() for out in session.run(feed).values())
        assert sqnr(want, got) > 30
    assert session.skipped == 3
    session.reset()
    session.run(feed)
    assert session.skipped == 3


def test_skipping_all_steps_but_one_repeats_bit_for_bit(session):
    first, skipped = steps_of(session, 1e9)
    again, _ = steps_of(session, 1e9)
    assert skipped == [False] + [True] * (STEPS - 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def sqnr(want, got):
    return float(10 * torch.log10(want.square().sum() / (want - got).square().sum().clamp_min(1e-30)))
