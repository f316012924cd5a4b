"""Random weights: the same for the same seed, with the promised outliers, sane through the whole depth."""

import dataclasses

import pytest
import torch

from svdq_trt.base.errors import UsageError
from svdq_trt.checkpoint import load
from svdq_trt.checkpoint.random_weights import fill_random
from svdq_trt.models import get_model, stack_group

SPEC = get_model("sdxl-tiny")


@pytest.fixture(scope="module")
def module():
    return load(SPEC, random_seed=3)


def test_equal_seeds_give_equal_weights_and_others_do_not(module):
    again, other = load(SPEC, random_seed=3).state_dict(), load(SPEC, random_seed=4).state_dict()
    for name, tensor in module.state_dict().items():
        assert tensor.equal(again[name]), name
        assert not tensor.equal(other[name]), name


def test_weights_do_not_depend_on_order_or_on_torchs_global_state(module):
    torch.manual_seed(99)
    partial = SPEC.build()
    del partial.down_blocks[0].resnets[0].conv1.bias  # one tensor less to draw before all the others
    fill_random(SPEC, partial, 3)
    want = module.state_dict()
    assert all(t.equal(want[n]) for n, t in partial.state_dict().items())


def test_tensors_are_distinct(module):
    seen = {t.flatten()[:64].numpy().tobytes() for t in module.state_dict().values()}
    assert len(seen) == len(module.state_dict())


def test_every_group_has_outlier_input_channels(module):
    for group in SPEC.groups(module):
        parents = {}  # a node may span several blocks: each has channels of its own
        for member in group.members:
            parents.setdefault(member.rpartition(".")[0], []).append(member)
        blocks = [frozenset(check_outliers(module, group, tuple(members))) for members in parents.values()]
        assert len(set(blocks)) == len(blocks), group.node


def check_outliers(module, group, members):
    """The large input channels of linears of one block; the same for each of them."""
    weight = stack_group(module, dataclasses.replace(group, members=members))[0].float()
    size = weight.square().mean(0).sqrt()
    ratio = size / size.median()
    large = ratio[ratio > 10]
    assert 4 <= len(large) <= 8, group.node
    assert large.min() > 18 and large.max() < 110, group.node
    tops = [set(p.square().mean(0).topk(len(large)).indices.tolist()) for p in weight.chunk(len(members))]
    assert all(t == tops[0] for t in tops), group.node
    return tops[0]


def test_norms_in_front_of_linears_have_outlier_channels(module):
    sources = [g.source for g in SPEC.groups(module) if g.source]
    assert len(sources) == 30
    for name in sources:
        gamma = module.get_submodule(name).weight.float()
        assert (gamma > 7).sum() == 3 and gamma.max() < 17, name


@torch.inference_mode()
def test_activations_stay_within_float16_at_every_layer(module):
    worst = {}
    wide = load(SPEC, random_seed=3).float()
    for name, layer in wide.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, y, name=name: worst.update({name: float(y.abs().max())}))
    y = SPEC.wrap(wide)(*SPEC.example_inputs(2, 128, 128, dtype=torch.float32))
    assert 0.3 < y.std() < 3
    assert len(worst) > 100 and max(worst.values()) < 1000
    half = SPEC.wrap(module)(*SPEC.example_inputs(2, 128, 128))
    assert (half.float() - y).norm() < 0.02 * y.norm()


def test_negative_seed_is_refused():
    with pytest.raises(UsageError, match="-1"):
        load(SPEC, random_seed=-1)
