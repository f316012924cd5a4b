"""What is quantized, what is kept, and that nothing is in neither."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from svdq_trt.base.errors import ShapeError, UnsupportedError, UsageError
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import K_MULTIPLE, N_MULTIPLE, R_MAX, Activation
from svdq_trt.models import MODELS, Axis, Kept, TensorIO, get_model, member_tensors, stack_group
from svdq_trt.models.recipe import weight_layers
from tests.harness import recipes
from tests.harness.published import publish, random_module

BLOCK = "mid_block.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def sdxl():
    return get_model("sdxl").build()


def members(groups, weight_only):
    return [m for g in groups if g.weight_only is weight_only for m in g.members]


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_as_published(name):
    spec = get_model(name)
    tables = {name for table in spec.tables for name in table.parameters}
    assert sum(p.numel() for n, p in spec.build().named_parameters() if n not in tables) == spec.parameters


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_twin_of_its_own_class(name):
    """Otherwise the twin's entry in the support table would say nothing about the model."""
    spec = get_model(name)
    twin = get_model(spec.twin or name)
    assert not twin.twin and twin.parameters < 2e7
    assert (twin.class_path, twin.act_dtype) == (spec.class_path, spec.act_dtype)
    assert type(twin.family) is type(spec.family)

    def kinds(s):
        """Nodes of the frozen recipe by name, less the numbers, with what they apply."""
        lines = (recipes.FOLDER / f"{s.name}.txt").read_text().splitlines()
        nodes = (line.split(" < ", 1) for line in lines if " < " in line)
        return {(re.sub(r"\[[^]]*\]|\d+", "", node), *re.findall(r" act=(\w+)", rest)) for node, rest in nodes}

    assert kinds(spec) and kinds(spec) <= kinds(twin)


def test_sdxl_counts_of_quantized_and_kept_layers(sdxl):
    recipe = get_model("sdxl").recipe(sdxl)
    assert len(members(recipe.groups, False)) == 560
    assert len(members(recipe.groups, True)) == 140
    keys_and_values = 6 * 2 + 5  # ten blocks in a row share two nodes, two blocks one
    assert len(recipe.groups) == 70 * 6 + keys_and_values
    assert len(recipe.kept) == 94
    numel = {name: layer.weight.numel() for name, layer in weight_layers(sdxl).items()}
    assert round(sum(numel[m] for m in members(recipe.groups, False)) / 1e9, 2) == 1.84
    assert round(sum(numel[m] for m in members(recipe.groups, True)) / 1e9, 2) == 0.34


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_in_one_group_or_kept_with_a_reason(name):
    spec = get_model(name)
    module = spec.build()
    recipe = spec.recipe(module)
    whole = [m for g in recipe.groups if g.columns is None and g.rows is None for m in g.members]
    split = {}
    for g in recipe.groups:
        if g.columns is not None:
            split.setdefault((g.members[0], "in_features"), []).append(g.columns)
        if g.rows is not None:
            split.setdefault((g.members[0], "out_features"), []).extend(g.rows)
    for (member, size), parts in split.items():  # side by side, without gap or overlap
        edges = [edge for pair in sorted(parts) for edge in pair]
        assert edges[0] == 0 and edges[-1] == getattr(module.get_submodule(member), size)
        assert edges[1:-1:2] == edges[2:-1:2]
    accounted = [*whole, *(member for member, _ in split), *(k.name for k in recipe.kept)]
    assert sorted(accounted) == sorted(weight_layers(module))
    assert all(k.reason for k in recipe.kept)


@pytest.mark.parametrize("name", MODELS)
def test_groups_fit_the_op_contract_and_share_their_input_size(name):
    spec = get_model(name)
    module = spec.build()
    for group in spec.groups(module):
        shapes = [w.shape for w in member_tensors(module, group)[0]]
        assert len({k for _, k in shapes}) == 1, group
        assert all(n % N_MULTIPLE == 0 and k % K_MULTIPLE == 0 for n, k in shapes), group
        if name.endswith("-tiny"):
            assert shapes[0][1] % 128 == 0, group


def test_nodes_of_one_block(sdxl):
    got = {g.node: g for g in get_model("sdxl").groups(sdxl) if g.node.startswith(BLOCK)}
    assert list(got) == [
        f"{BLOCK}.{leaf}"
        for leaf in (
            "attn1.to_qkv",
            "attn1.to_out.0",
            "attn2.to_q",
            "attn2.to_kv",
            "attn2.to_out.0",
            "ff.net.0",
            "ff.net.2",
        )
    ]
    assert got[f"{BLOCK}.attn1.to_qkv"].members == tuple(f"{BLOCK}.attn1.to_{x}" for x in "qkv")
    kv = got[f"{BLOCK}.attn2.to_kv"]
    blocks = [BLOCK[:-1] + str(i) for i in range(5)]
    assert kv.members == tuple(f"{block}.attn2.to_{x}" for block in blocks for x in "kv")
    assert kv.weight_only and kv.rank(32) == 160 and kv.rank(512) == R_MAX
    geglu = got[f"{BLOCK}.ff.net.0"]
    assert (geglu.members, geglu.activation) == ((f"{BLOCK}.ff.net.0.proj",), Activation.GEGLU)
    for group in got.values():
        assert group.source is None or isinstance(sdxl.get_submodule(group.source), nn.LayerNorm)


def test_skip_keeps_the_whole_group_and_says_why():
    spec = get_model("sdxl-tiny")
    module = spec.build()
    recipe = spec.recipe(module, skip=[f"{BLOCK}.attn1.to_k"])
    assert f"{BLOCK}.attn1.to_qkv" not in {g.node for g in recipe.groups}
    reasons = {k.name: k.reason for k in recipe.kept}
    for x in "qkv":
        assert reasons[f"{BLOCK}.attn1.to_{x}"] == f"left out by --skip '{BLOCK}.attn1.to_k'"


def test_skip_that_matches_nothing_is_an_error():
    spec = get_model("sdxl-tiny")
    with pytest.raises(UsageError, match=r"'nothing.\*' matches no quantized layer"):
        spec.recipe(spec.build(), skip=["nothing.*", "mid_block.*"])


def test_skip_by_weights_keeps_small_groups_but_for_those_of_few_tokens(sdxl):
    spec = get_model("sdxl")
    kept = {g.node for g in spec.groups(sdxl)} - {g.node for g in spec.groups(sdxl, skip=["<2M"])}
    parts = [re.fullmatch(r"(.*)\.transformer_blocks\.\d+\.(.*)", name).groups() for name in kept]
    leaves = {(sdxl.get_submodule(block).in_channels, leaf) for block, leaf in parts}
    always = {"attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"}  # 1280 x 1280 is 1.64 M
    assert leaves == {(c, leaf) for c in (640, 1280) for leaf in always} | {(640, "attn1.to_qkv"), (640, "ff.net.2")}


@pytest.mark.parametrize("wrong", ["<2X", "<", "<inf", "<M"])
def test_skip_by_something_that_is_no_number_is_an_error(wrong):
    spec = get_model("sdxl-tiny")
    with pytest.raises(UsageError, match="a number of weights behind <"):
        spec.recipe(spec.build(), skip=[wrong])


def test_group_with_unfit_k_is_kept_with_that_reason():
    tiny = get_model("sdxl-tiny")
    odd = {**tiny.config, "block_out_channels": (32, 96, 192), "attention_head_dim": (1, 3, 3)}
    spec = dataclasses.replace(tiny, config=odd)
    recipe = spec.recipe(spec.build())
    reasons = {k.name: k.reason for k in recipe.kept}
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    assert reasons[f"{name}.to_out.0"] == "K = 96 is not a multiple of 64"
    assert f"{name.replace('blocks.1.att', 'blocks.2.att', 1)}.to_qkv" in {g.node for g in recipe.groups}


def test_attention_with_extras_is_refused():
    spec = get_model("sdxl-tiny")
    module = spec.build()
    group = next(g for g in spec.groups(module) if g.node == f"{BLOCK}.attn1.to_qkv")
    module.get_submodule(f"{BLOCK}.attn1").norm_q = nn.LayerNorm(64, device="meta")
    with pytest.raises(UnsupportedError, match="attn1': has norm_q, want what FusedSelfAttention computes"):
        spec.install(module, group, nn.Identity())


def test_layer_without_a_rule_is_refused():
    spec = get_model("sdxl-tiny")
    module = spec.build()
    module.novel = nn.Linear(64, 64, device="meta")
    with pytest.raises(UnsupportedError, match="layer 'novel': no rule"):
        spec.recipe(module)


def test_stack_group_orders_members_and_fills_missing_bias():
    spec = get_model("sdxl-tiny")
    module = spec.build(device="cpu")
    group = next(g for g in spec.groups(module) if g.node == f"{BLOCK}.attn1.to_qkv")
    weight, bias = stack_group(module, group)
    assert bias is None
    n = weight.shape[0] // 3
    for i, name in enumerate(group.members):
        assert weight[i * n : (i + 1) * n].equal(module.get_submodule(name).weight)
    q = module.get_submodule(group.members[1])
    q.bias = nn.Parameter(q.weight[:, 0].clone())
    _, bias = stack_group(module, group)
    assert bias[n : 2 * n].equal(q.bias) and not bias[:n].any() and not bias[2 * n :].any()


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(UsageError, match="'sd15', want one of sdxl, sdxl-turbo"):
        get_model("sd15")


@pytest.mark.parametrize("sizes", [{"height": 100}, {"width": 0}, {"batch": 0}])
def test_example_inputs_refuse_unfit_sizes(sizes):
    with pytest.raises(ShapeError, match=next(iter(sizes))):
        get_model("sdxl-tiny").example_inputs(**sizes)


def test_rules_of_axes_hold_for_every_size():
    """A model that takes text in multiples of 32, and positions from a table that ends."""
    tiny = get_model("sd3-tiny")
    inputs = tuple(
        dataclasses.replace(
            io, dims=tuple(dataclasses.replace(d, multiple=32) if str(d) == "tokens" else d for d in io.dims)
        )
        for io in tiny.inputs
    )
    spec = dataclasses.replace(tiny, inputs=inputs)
    assert spec.inputs[1].axes == ("batch", "32*tokens", "")
    with pytest.raises(ShapeError, match="tokens: 40, want a multiple of 32 for sd3-tiny"):
        spec.check_sizes({"tokens": 40})
    spec.check_sizes({"tokens": 64, "height": 384})
    for side in ("height", "width"):  # 24 patches of 2 x 2 latents of 8 x 8 pixels
        with pytest.raises(ShapeError, match=f"{side}: 400, want at most 384 for sd3-tiny"):
            spec.check_sizes({side: 400})


def test_frames_of_a_video_are_its_first_and_then_one_in_four():
    axis = Axis("frames", divisor=4, first=1)
    assert [axis.size({"frames": frames}) for frames in (1, 5, 81)] == [1, 2, 21]
    assert [axis.value(size) for size in (1, 2, 21)] == [1, 5, 81] and axis.name == "frames"
    assert [axis.misfit_of(frames) for frames in (1, 81, 82)] == ["", "", "4*n + 1"]


def test_rule_of_an_axis_of_two_sizes_holds_for_their_product():
    axis = Axis("height", divisor=256, multiple=2, by=("width",))
    io = TensorIO("hidden_states", "act", (Axis("batch"), axis, 16))
    spec = dataclasses.replace(get_model("flux1-tiny"), inputs=(io,))
    spec.check_sizes({"height": 32, "width": 48})
    with pytest.raises(ShapeError, match="height x width: 48 x 48, want a multiple of 512 for flux1-tiny"):
        spec.check_sizes({"height": 48, "width": 48})


def test_weights_that_diffusers_keeps_in_f32_stay_so(monkeypatch, tmp_path):
    """Beside 16-bit ones, from a seed and from a file, and none of them is quantized."""
    spec = get_model("sd3-tiny")
    monkeypatch.setattr(spec.model_class(), "_keep_in_fp32_modules", ["norm_out", "norm_q"])
    module = load(spec, random_seed=0)
    dtypes = {name: value.dtype for name, value in module.state_dict().items()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {name for name in dtypes if {"norm_out", "norm_q"} & set(name.split("."))} and len(kept) == 6
    assert {dtypes[name] for name in dtypes.keys() - kept} == {torch.bfloat16}
    recipe = spec.recipe(module)
    assert Kept("norm_out.linear", "diffusers keeps it in f32") in recipe.kept
    assert "norm_out.linear" not in {member for group in recipe.groups for member in group.members}
    read = load(spec, str(publish(random_module(spec, 0), tmp_path, torch.float32)))
    assert {name: value.dtype for name, value in read.state_dict().items()} == dtypes
