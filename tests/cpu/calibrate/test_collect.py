"""Calibration sees what really flows into the linears, repeatably, and leaves the module as it was."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, UsageError
from svdq_trt.calibrate import collect
from svdq_trt.calibrate.inputs import InputFile, batches, tensor_name
from svdq_trt.checkpoint import load
from svdq_trt.models import get_model

SPEC = get_model("sdxl-tiny")
SMALL = {"height": 64, "width": 128}
BLOCK = "mid_block.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def module():
    return load(SPEC, random_seed=5)


@pytest.fixture(scope="module")
def groups(module):
    return SPEC.groups(module)


@pytest.fixture(scope="module")
def calibration(module):
    return collect(module, SPEC, samples=2, tokens_per_group=24, **SMALL)


@torch.inference_mode()
def recorded(module, inputs):
    """Inputs of every linear, by hooks on an f32 copy of the model: [all tokens, K]."""
    wide = copy.deepcopy(module).float()
    seen = {}
    for name, layer in wide.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2).clone())
            )
    flat = SPEC.wrap(wide)
    for values in inputs:
        flat(*values)
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.fixture(scope="module")
def truth(module):
    inputs = [SPEC.example_inputs(1, 64, 128, seed=i, dtype=torch.float32, noise=1 - (i + 0.5) / 2) for i in range(2)]
    return recorded(module, inputs)


def test_amax_equals_the_maximum_over_all_tokens(calibration, truth, groups):
    assert set(calibration.amax) == {g.node for g in groups}
    for group in groups:
        for member in group.members:  # all of them: they share one x
            want = truth[member].abs().amax(0)
            got = calibration.amax[group.node]
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_rows_are_distinct_tokens_of_every_sample(calibration, truth, groups):
    for group in groups:
        x, all_rows = calibration.x[group.node], truth[group.members[0]]
        tokens = len(all_rows) // 2
        assert x.dtype == torch.float16
        assert x.shape == (2 * min(12, tokens), all_rows.shape[1]), group.node
        distance, index = torch.cdist(x.float(), all_rows).min(1)
        assert distance.max() < 2e-3 * all_rows.norm(dim=1).max(), group.node
        assert index.unique().numel() == len(index), group.node
        assert (index < tokens).sum() == len(index) // 2, group.node


def test_rows_are_spread_over_all_tokens(module, truth):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    hits = set()
    for seed in range(6):  # 12 of 32 tokens each: together nearly all, were the choice uniform
        got = collect(module, SPEC, samples=1, tokens_per_group=12, seed=seed, **SMALL)
        inputs = SPEC.example_inputs(1, 64, 128, seed=seed, dtype=torch.float32, noise=0.5)
        rows = recorded(module, [inputs])[f"{name}.to_q"]
        hits |= set(torch.cdist(got.x[f"{name}.to_qkv"].float(), rows).argmin(1).tolist())
    assert len(rows) == 32 and len(hits) >= 26


def test_equal_seeds_give_equal_results(module, calibration):
    again = collect(module, SPEC, samples=2, tokens_per_group=24, **SMALL)
    other = collect(module, SPEC, samples=2, tokens_per_group=24, seed=1, **SMALL)
    for node, x in calibration.x.items():
        assert x.equal(again.x[node]) and calibration.amax[node].equal(again.amax[node])
        assert not x.equal(other.x[node])


def test_module_is_unchanged_afterwards(module, calibration):
    fresh = load(SPEC, random_seed=5).state_dict()
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float16 and tensor.equal(fresh[name])
    assert all("forward" not in m.__dict__ for m in module.modules())


def test_module_is_unchanged_after_an_interrupted_run(module):
    def stop(done, total, label):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(module, SPEC, samples=1, progress=stop, **SMALL)
    assert all("forward" not in m.__dict__ for m in module.modules())
    assert all(p.dtype == torch.float16 for p in module.parameters())


def test_progress_counts_every_group_once_per_sample(module, groups):
    calls = []
    collect(module, SPEC, samples=2, progress=lambda *a: calls.append(a), **SMALL)
    assert [c[0] for c in calls] == list(range(1, 2 * len(groups) + 1))
    assert {c[1] for c in calls} == {2 * len(groups)}
    assert {c[2] for c in calls} == {g.node for g in groups}


def test_only_the_given_groups_are_kept(module, groups):
    got = collect(module, SPEC, groups[:3], samples=1, **SMALL)
    assert set(got.x) == {g.node for g in groups[:3]} == set(got.amax)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_the_first_layer(value):
    module = load(SPEC, random_seed=5)
    module.get_submodule(f"{BLOCK}.attn1.to_out.0").bias[3] = value
    with pytest.raises(RangeError, match=rf"layer '{BLOCK}.attn1.to_out.0': NaN or Inf"):
        collect(module, SPEC, samples=1, **SMALL)


def test_overflow_of_float16_names_the_layer():
    module = load(SPEC, random_seed=5)
    module.get_submodule(f"{BLOCK}.ff.net.2").weight.mul_(0).add_(6e4)
    with pytest.raises(RangeError, match=rf"layer '{BLOCK}.ff.net.2': \|value\| up to .* at most 65504"):
        collect(module, SPEC, samples=1, **SMALL)


@pytest.mark.parametrize("bad", [{"samples": 0}, {"tokens_per_group": 0}])
def test_counts_below_one_are_refused(module, bad):
    with pytest.raises(UsageError, match="0, want at least 1"):
        collect(module, SPEC, **bad)


def test_sizes_that_do_not_fit_are_refused(module):
    with pytest.raises(ShapeError, match="height"):
        collect(module, SPEC, height=100)


# ---- the user's own inputs --------------------------------------------------------------------------------


def stacked(n=3, **kwargs):
    parts = [SPEC.example_inputs(1, 64, 64, seed=i, dtype=torch.float16, **kwargs) for i in range(n)]
    return {io.name: torch.cat(ts) for io, ts in zip(SPEC.inputs, zip(*parts, strict=True), strict=True)}


def test_user_data_is_run_sample_by_sample(module, tmp_path, groups):
    path = tmp_path / "inputs.safetensors"
    data = stacked(tokens=11)
    save_file(data, path)
    got = collect(module, SPEC, data=path)
    truth = recorded(module, [tuple(data[io.name].float() for io in SPEC.inputs)])
    for group in groups:
        torch.testing.assert_close(got.amax[group.node], truth[group.members[0]].abs().amax(0), rtol=1e-4, atol=1e-5)
    assert got.x[f"{BLOCK}.attn2.to_kv"].shape == (33, 128)
    assert (got.meta["samples"], got.meta["source"], got.meta["height"]) == (3, "inputs.safetensors", 64)


def test_inputs_of_several_sizes_calibrate_together(module, tmp_path, groups):
    """Each with those of its own size; streamed or not."""
    short, long = stacked(n=2, tokens=11), stacked(n=1, tokens=17)
    data = {tensor_name(i, 2, name): t for i, part in enumerate((short, long)) for name, t in part.items()}
    save_file(data, tmp_path / "inputs.safetensors")
    file = InputFile(SPEC, tmp_path / "inputs.safetensors")
    assert file.samples == 3 and [group.sizes["tokens"] for group in file.groups] == [11, 17]
    assert [(n, values[2].shape[:2]) for n, values in batches(SPEC, file, 4)] == [(2, (2, 11)), (1, (1, 17))]
    got = collect(module, SPEC, data=tmp_path / "inputs.safetensors")
    inputs = [tuple(part[io.name].float() for io in SPEC.inputs) for part in (short, long)]
    truth = recorded(module, inputs)
    for group in groups:
        torch.testing.assert_close(got.amax[group.node], truth[group.members[0]].abs().amax(0), rtol=1e-4, atol=1e-5)
    assert got.x[f"{BLOCK}.attn2.to_kv"].shape == (2 * 11 + 17, 128)


def test_timesteps_may_be_whole_numbers(tmp_path):
    """As schedulers have them."""
    data = stacked() | {"timestep": torch.tensor([999, 500, 0])}
    save_file(data, tmp_path / "inputs.safetensors")
    assert [one[1].tolist() for one in InputFile(SPEC, tmp_path / "inputs.safetensors")] == [[999.0], [500.0], [0.0]]


@pytest.mark.parametrize(
    "change,kind,text",
    [
        ({"sample": None}, ShapeError, "no tensor 'sample'"),
        ({"mask": torch.zeros(3)}, ShapeError, "unknown tensor 'mask'"),
        ({"time_ids": torch.zeros(3, 5)}, ShapeError, r"'time_ids': shape \[3, 5\], want \[batch, 6\]"),
        ({"timestep": torch.zeros(2)}, ShapeError, "'timestep'.*equal in all inputs"),
        ({"timestep": torch.zeros(3, 1)}, ShapeError, "'timestep'.*batch"),
        ({"sample": torch.zeros(3, 4, 9, 8)}, ShapeError, "a multiple of 4 for height in place of 9"),
        ({"sample": torch.zeros(3, 4, 8, 8, dtype=torch.int32)}, ArtifactError, r"'sample': dtype I32, want floats\.$"),
        ({"sample": torch.full((3, 4, 8, 8), float("nan"))}, ArtifactError, "'sample': NaN or Inf"),
    ],
)
def test_unfit_user_data_is_refused(module, tmp_path, change, kind, text):
    path = tmp_path / "inputs.safetensors"
    save_file({k: v for k, v in (stacked() | change).items() if v is not None}, path)
    with pytest.raises(kind, match=text):
        collect(module, SPEC, data=path)


def test_user_data_without_samples_is_refused(module, tmp_path):
    path = tmp_path / "inputs.safetensors"
    save_file({k: v[:0].contiguous() for k, v in stacked().items()}, path)
    with pytest.raises(ShapeError, match="batch: 0"):
        collect(module, SPEC, data=path)
