"""Steps that are skipped, and their latents, against the step cache in plain torch and diffusers' first-block cache."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.checkpoint import load
from svdq_trt.models import get_model
from svdq_trt.runtime import OnnxSession
from tests.harness.in_pieces import FIXED, write_folder

STEPS = 8
THRESHOLDS = (0.2, 1.0, 1.2, 20.0)  # the first skips no step, the last all but one
#: model -> first block and number of its output that is the image's, last block and the same, and number of the input
BLOCKS = {
    "flux1-tiny": (("transformer_blocks.0", 1), ("single_transformer_blocks.1", 1)),
    "sana-tiny": (("transformer_blocks.0", 0), ("transformer_blocks.1", 0)),
    "qwen-image-tiny": (("transformer_blocks.0", 1), ("transformer_blocks.1", 1)),
}


class StepCache:
    """The cache over a module, which runs whole at every step: x2 is replaced where it would be skipped.

    Attributes:
        changes: relative change of each step's residual to the last computed one. skipped: whether each step was.
    """

    def __init__(self, module, first, last, threshold):
        self.threshold, self.changes, self.skipped = threshold, [], []
        self.computed, self.x1 = [], None  # residual and change of each
        (first, self.first), (last, self.last) = first, last
        module.get_submodule(first).register_forward_hook(self.behind_first, with_kwargs=True)
        module.get_submodule(last).register_forward_hook(self.behind_last)

    def behind_first(self, _module, args, kwargs, result):
        x0 = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.x1 = part(result, self.first)
        self.residual = self.x1 - x0
        change = math.inf
        if self.computed:
            last, _ = self.computed[-1]
            change = float((self.residual - last).abs().mean() / last.abs().mean())
        self.changes.append(change)
        self.skipped.append(change <= self.threshold)

    def behind_last(self, _module, _args, result):
        if not self.skipped[-1]:
            self.computed.append((self.residual, part(result, self.last) - self.x1))
            return result
        last, change = self.computed[-1]
        x2 = self.x1 + change
        if len(self.computed) > 1:
            before, change_before = self.computed[-2]
            gone = (last - before).flatten()
            k = torch.dot((self.residual - last).flatten(), gone) / torch.dot(gone, gone)
            x2 = x2 + float(k.clip(0, 2)) * (change - change_before)
        return (*result[: self.last], x2, *result[self.last + 1 :]) if isinstance(result, tuple) else x2


def part(result, index):
    return result[index] if isinstance(result, tuple) else result


def sampled(spec, step):
    """The latents after 8 steps of `step`, which takes the inputs by name, as the engine does in 16 bit."""
    first, *_ = spec.inputs
    feed = example(spec, 7, noise=1.0)
    latents, scale = feed[first.name].float(), float(feed["timestep"].max())  # of the first step: 1 or 1000
    for i in range(STEPS):
        timestep = torch.full_like(feed["timestep"], scale * (1 - i / STEPS))
        out = step(feed | {first.name: latents.to(spec.torch_dtype), "timestep": timestep})
        latents = latents - out.to(spec.torch_dtype).float() / STEPS
    return latents


def example(spec, seed, **more):
    """Inputs by name, in the model's dtypes."""
    values = spec.example_inputs(**{symbol: low for symbol, (low, *_) in FIXED.items()}, seed=seed, **more)
    return {io.name: value for io, value in zip(spec.inputs, values, strict=True)}


def in_torch(spec, threshold):
    module = load(spec, random_seed=0).float()
    cache = StepCache(module, *BLOCKS[spec.name], threshold)
    wrapped = spec.wrap(module)
    with torch.no_grad():
        return sampled(spec, lambda feed: wrapped(*in_float32(feed).values())), cache


def in_float32(feed):
    return {name: value.float() if value.is_floating_point() else value for name, value in feed.items()}


@pytest.fixture(scope="module", params=BLOCKS)
def folder(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    write_folder(out, get_model(request.param), FIXED)
    return out


@pytest.fixture(scope="module")
def session(folder):
    with OnnxSession(folder) as opened:
        yield opened


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_steps_and_latents_are_those_of_plain_torch(session, threshold):
    spec = get_model(session.model)
    want, cache = in_torch(spec, threshold)
    assert min(abs(change - threshold) for change in cache.changes) > 1e-3  # no step is a toss-up
    got, skipped = in_pieces(session, spec, threshold)
    assert skipped == cache.skipped
    if threshold in (THRESHOLDS[0], THRESHOLDS[-1]):
        assert sum(skipped) == (0 if threshold == THRESHOLDS[0] else STEPS - 1)
    assert_equal(got, want)


@pytest.mark.parametrize("folder", ["flux1-tiny"], indirect=True)
def test_latents_are_those_of_diffusers_own_cache(session):
    """With one computed step, behind which nothing is known of where the changes go."""
    from diffusers import FirstBlockCacheConfig

    threshold = THRESHOLDS[-1]
    spec = get_model(session.model)
    module = load(spec, random_seed=0).float()
    module.enable_cache(FirstBlockCacheConfig(threshold))
    with torch.no_grad(), module.cache_context("cond"):
        want = sampled(spec, lambda feed: module(**in_float32(feed), return_dict=False)[0])
    assert_equal(in_pieces(session, spec, threshold)[0], want)


def assert_equal(got, want):
    """To the roundings of 16 bit, at each step of the latents and of the output."""
    assert (got - want).square().mean() < 1e-5 * want.square().mean()


def in_pieces(session, spec, threshold):
    """The latents, and which steps were skipped."""
    session.step_cache = threshold
    counts = [0]

    def step(feed):
        (found,) = session.run(feed).values()
        counts.append(session.skipped)
        return found

    return sampled(spec, step), [after > before for before, after in itertools.pairwise(counts)]


@pytest.mark.parametrize("folder", ["flux1-tiny"], indirect=True)
def test_each_cache_has_its_own_steps_and_forgets_them(session):
    spec = get_model(session.model)
    feeds = [example(spec, 1), example(spec, 2)]
    session.step_cache = 0.0
    want = [session.run(feed)["out_hidden_states"] for feed in feeds]
    session.step_cache = 1e-6

    def skips(index, cache=""):
        before = session.skipped
        got = session.run(feeds[index], cache=cache)["out_hidden_states"]
        assert (got.float() - want[index].float()).abs().max() < 0.05  # also of a skipped step, which is the same one
        return session.skipped > before

    assert [skips(0, "cond"), skips(1, "uncond"), skips(0, "cond"), skips(1, "uncond")] == [False, False, True, True]
    assert not skips(1, "cond")  # another picture's
    session.reset()
    assert [skips(1, "cond"), skips(1, "cond")] == [False, True]
    session.step_cache = 0.0
    assert session.skipped == 0 and not skips(1, "cond")


@pytest.mark.parametrize("folder", ["flux1-tiny"], indirect=True)
def test_thresholds_that_make_no_sense(folder, session):
    for value in (-0.1, math.nan, math.inf):
        with pytest.raises(UsageError, match="step_cache"):
            session.step_cache = value
    with OnnxSession(folder / "model.onnx") as whole:
        whole.step_cache = 0.0
        with pytest.raises(UnsupportedError, match="an engine in one piece, want one that was built with --step-cache"):
            whole.step_cache = 0.1


@pytest.mark.parametrize("folder", ["flux1-tiny"], indirect=True)
def test_nan_is_computed(session):
    spec = get_model(session.model)
    feed = example(spec, 1)
    session.step_cache = 100.0
    session.run(feed)
    feed["hidden_states"] = torch.full_like(feed["hidden_states"], math.nan)
    assert session.run(feed)["out_hidden_states"].isnan().any() and session.skipped == 0
