"""SANA, Qwen-Image and Z-Image: files with the names and layouts that nunchaku's loaders expect, spelled out here."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svdq_trt.artifact import svdq_file
from svdq_trt.interop import import_checkpoint
from svdq_trt.interop.layouts import NEW, OLD
from svdq_trt.interop.nunchaku_export import write_nunchaku
from svdq_trt.models import ModelSpec, Profile, get_model
from svdq_trt.models.recipe import LinearGroup, Recipe
from svdq_trt.nn.restore import layer_of, restore_model
from tests.cpu.interop import nunchaku_layers as make
from tests.cpu.interop.toy_flux import GivenSpec

SANA = "sana-tiny"


def weights_of(loaded) -> dict[str, torch.Tensor]:
    """The weight of every linear or convolution, quantized or not, as [N, K...] f64."""
    found = {n.removesuffix(".weight"): t.double() for n, t in loaded.tensors.items() if n.endswith(".weight")}
    for node in loaded.nodes:
        rows = layer_of(node, loaded.tensors).dequantize().double().split(list(node.member_rows))
        found |= dict(zip(node.members, rows, strict=True))
    return found


def import_file(tmp_path, spec, tensors):
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "n.safetensors")
    import_checkpoint(tmp_path / "n.safetensors", spec, tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    restore_model(loaded, spec)
    return loaded


def others(spec, quantized) -> dict[str, torch.Tensor]:
    """Random values for all parameters but those of the given layers."""
    g = torch.Generator().manual_seed(9)
    state = spec.build().state_dict()
    owned = {f"{m}.{leaf}" for m in quantized for leaf in ("weight", "bias")}
    return {n: torch.randn(p.shape, generator=g).to(p.dtype) for n, p in state.items() if n not in owned}


def close(got, want):
    return (got - want).norm() < 0.006 * want.norm()


def test_sana(tmp_path):
    """Members of q/k/v padded one by one, channels of the gated unit interleaved, convolutions with channels last."""
    spec, c, hidden = get_model(SANA), 128, 624
    padded = 1280  # rows of the gated unit, in whole tiles
    rest, truths = {}, {}
    for i in range(spec.config["num_layers"]):
        b = f"transformer_blocks.{i}"
        args = {"rank": 16, "keys": OLD, "seed": i}
        qkv = make.w4a4(f"{b}.attn.qkv_proj", 3 * c, c, members=(c,) * 3, layout="each", bias=False, **args)
        layers = {
            "attn.qkv_proj": qkv,
            "attn.out_proj": make.w4a4(f"{b}.attn.out_proj", c, c, **args),
            "cross_attn.q_linear": make.w4a4(f"{b}.cross_attn.q_linear", c, c, **args),
            "cross_attn.out_proj": make.w4a4(f"{b}.cross_attn.out_proj", c, c, **args),
            "ff.inverted_conv": make.w4a4(f"{b}.ff.inverted_conv", 2 * hidden, c, layout="pairs", **args),
            "ff.point_conv": make.w4a4(f"{b}.ff.point_conv", c, hidden, bias=False, **args),
        }
        truths[b] = layers
        kv, depth = torch.randn(2 * c, c).bfloat16(), torch.randn(padded, 3, 3, 1).bfloat16()
        depth_bias = torch.randn(padded).bfloat16()
        rest |= {
            f"{b}.cross_attn.kv_linear.weight": kv,
            f"{b}.cross_attn.kv_linear.bias": kv[:, 0].clone(),
            f"{b}.ff.depth_conv.weight": depth,
            f"{b}.ff.depth_conv.bias": depth_bias,
        }
        for layer in layers.values():
            rest |= layer.tensors
    ours = [
        f"transformer_blocks.{i}.{name}"
        for i in range(2)
        for name in (
            "attn1.to_q",
            "attn1.to_k",
            "attn1.to_v",
            "attn1.to_out.0",
            "attn2.to_q",
            "attn2.to_k",
            "attn2.to_v",
            "attn2.to_out.0",
            "ff.conv_inverted",
            "ff.conv_depth",
            "ff.conv_point",
        )
    ]
    loaded = import_file(tmp_path, spec, others(spec, ours) | rest)
    got = weights_of(loaded)
    for b, layers in truths.items():
        q, k, v = layers["attn.qkv_proj"].weight.split(c)
        for name, want in (
            ("attn1.to_q", q),
            ("attn1.to_k", k),
            ("attn1.to_v", v),
            ("attn1.to_out.0", layers["attn.out_proj"].weight),
            ("attn2.to_q", layers["cross_attn.q_linear"].weight),
            ("attn2.to_out.0", layers["cross_attn.out_proj"].weight),
            ("ff.conv_inverted", layers["ff.inverted_conv"].weight),
            ("ff.conv_point", layers["ff.point_conv"].weight),
        ):
            assert close(got[f"{b}.{name}"].flatten(1), want), (b, name)
        assert torch.equal(got[f"{b}.attn2.to_v"], rest[f"{b}.cross_attn.kv_linear.weight"][c:].double())
        depth = rest[f"{b}.ff.depth_conv.weight"].double()  # [2·hidden, 3, 3, 1], value and gate in turn
        assert torch.equal(got[f"{b}.ff.conv_depth"][0, 0], depth[0, :, :, 0])
        assert torch.equal(got[f"{b}.ff.conv_depth"][hidden, 0], depth[1, :, :, 0])
        assert torch.equal(loaded.tensors[f"{b}.ff.conv_depth.bias"][hidden], rest[f"{b}.ff.depth_conv.bias"][1])
        assert torch.equal(loaded.tensors[f"{b}.ff.conv_inverted.bias"], layers["ff.inverted_conv"].bias)


class _Together:
    """Quantizes exactly the given groups; for models that this tool has no spec of yet."""

    WRAPPED = "transformer"

    def __init__(self, groups: tuple[LinearGroup, ...]) -> None:
        self.groups = groups

    def prepare(self, module: nn.Module) -> None:
        pass

    def recipe(self, module: nn.Module, skip) -> Recipe:
        return Recipe(self.groups, ())

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        parent, _, leaf = group.node.rpartition(".")
        owner = module.get_submodule(parent)
        if len(group.members) > 1:
            for name in group.members:
                delattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
        setattr(owner, leaf, fused)


def spec_of(name: str, class_path: str, config: dict, groups: list[LinearGroup]) -> ModelSpec:
    return GivenSpec(
        name=name,
        title="",
        hub_id="",
        subfolder="transformer",
        variant="",
        class_path=class_path,
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=16,
        profile=Profile((1, 1, 1), (16, 16, 16), (16, 16, 16), (1, 1, 1)),
        calibration_pixels=16,
        inputs=(),
        outputs=(),
        family=_Together(tuple(groups)),
    )


QWEN = (
    "diffusers.models.transformers.transformer_qwenimage:QwenImageTransformer2DModel",
    {
        "num_layers": 1,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "in_channels": 16,
        "out_channels": 4,
        "axes_dims_rope": (16, 24, 24),
    },
)
ZIMAGE = (
    "diffusers.models.transformers.transformer_z_image:ZImageTransformer2DModel",
    {
        "in_channels": 4,
        "dim": 192,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 3,
        "n_kv_heads": 3,
        "cap_feat_dim": 64,
        "axes_dims": [16, 24, 24],
        "axes_lens": [64, 64, 64],
    },
)
B = "transformer_blocks.0"
#: nunchaku's layer -> (our node, members, chunks of adaLN)
QWEN_LAYERS = {
    f"{B}.img_mod.1": (f"{B}.img_mod.1", (f"{B}.img_mod.1",), 6),
    f"{B}.txt_mod.1": (f"{B}.txt_mod.1", (f"{B}.txt_mod.1",), 6),
    f"{B}.attn.to_qkv": (f"{B}.attn.to_qkv", tuple(f"{B}.attn.to_{m}" for m in "qkv"), 0),
    f"{B}.attn.add_qkv_proj": (f"{B}.attn.add_qkv", tuple(f"{B}.attn.add_{m}_proj" for m in "qkv"), 0),
    f"{B}.attn.to_out.0": (f"{B}.attn.to_out.0", (f"{B}.attn.to_out.0",), 0),
    f"{B}.attn.to_add_out": (f"{B}.attn.to_add_out", (f"{B}.attn.to_add_out",), 0),
    **{
        f"{B}.{s}_mlp.{m}": (f"{B}.{s}_mlp.{m}", (f"{B}.{s}_mlp.{m}",), 0)
        for s in ("img", "txt")
        for m in ("net.0.proj", "net.2")
    },
}
Z_LAYERS = {
    f"{b}.{theirs}": (f"{b}.{node}", tuple(f"{b}.{m}" for m in members), 0)
    for b in ("layers.0", "noise_refiner.0", "context_refiner.0")
    for theirs, node, members in (
        ("attention.to_qkv", "attention.to_qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
        ("attention.to_out.0", "attention.to_out.0", ("attention.to_out.0",)),
        ("feed_forward.net.0.proj", "feed_forward.w31", ("feed_forward.w3", "feed_forward.w1")),
        ("feed_forward.net.2", "feed_forward.w2", ("feed_forward.w2",)),
    )
}


@pytest.mark.parametrize("fp4", [False, True], ids=["int4", "fp4"])
@pytest.mark.parametrize("name,model,layers", [("qwen", QWEN, QWEN_LAYERS), ("z-image", ZIMAGE, Z_LAYERS)])
def test_python_modules(tmp_path, name, model, layers, fp4):
    """Values agree, and the way back gives the same file."""
    groups = [LinearGroup(node, members, weight_only=bool(chunks)) for node, members, chunks in layers.values()]
    spec = spec_of(name, *model, groups)
    modules, tensors, truths = dict(spec.build().named_modules()), {}, {}
    for seed, (theirs, (_, members, chunks)) in enumerate(layers.items()):
        linears = [modules[m] for m in members]
        n, k = sum(x.out_features for x in linears), linears[0].in_features
        truths[theirs] = (
            make.awq(theirs, n, k, chunks, seed=seed)
            if chunks
            else make.w4a4(theirs, n, k, fp4=fp4, keys=NEW, seed=seed, scales="t", bias=linears[0].bias is not None)
        )
        tensors |= truths[theirs].tensors
    tensors |= others(spec, [m for _, members, _ in layers.values() for m in members])
    loaded = import_file(tmp_path, spec, tensors)
    got = weights_of(loaded)
    for theirs, (_, members, _) in layers.items():
        assert close(torch.cat([got[m] for m in members]), truths[theirs].weight), theirs
    unsigned = {n.name for n in loaded.nodes if n.act_unsigned}
    assert unsigned == ({f"{B}.img_mlp.net.2", f"{B}.txt_mlp.net.2"} if name == "qwen" and not fp4 else set())
    back = write_nunchaku(loaded, spec).tensors
    assert sorted(back) == sorted(tensors)
    for key, t in tensors.items():
        assert torch.equal(back[key].contiguous().view(torch.uint8), t.contiguous().view(torch.uint8)), key


def test_z_image_refiners_in_16_bit(tmp_path):
    """skip_refiners: their feed-forward is stacked as in the quantized layers, but in 16 bit."""
    layers = {k: v for k, v in Z_LAYERS.items() if k.startswith("layers.")}
    spec = spec_of("z-image", *ZIMAGE, [LinearGroup(node, members) for node, members, _ in layers.values()])
    modules, tensors = dict(spec.build().named_modules()), {}
    for theirs, (_, members, _) in layers.items():
        linears = [modules[m] for m in members]
        n, k = sum(x.out_features for x in linears), linears[0].in_features
        tensors |= make.w4a4(theirs, n, k, keys=NEW, bias=linears[0].bias is not None).tensors
    tensors |= others(spec, [m for _, members, _ in layers.values() for m in members])
    for b in ("noise_refiner.0", "context_refiner.0"):
        w1, w2, w3 = (tensors.pop(f"{b}.feed_forward.w{i}.weight") for i in (1, 2, 3))
        tensors |= {f"{b}.feed_forward.net.0.proj.weight": torch.cat((w3, w1)), f"{b}.feed_forward.net.2.weight": w2}
    loaded = import_file(tmp_path, spec, tensors)
    b = "noise_refiner.0.feed_forward"
    assert torch.equal(loaded.tensors[f"{b}.w1.weight"], tensors[f"{b}.net.0.proj.weight"][len(w3) :])
    assert torch.equal(loaded.tensors[f"{b}.w2.weight"], tensors[f"{b}.net.2.weight"])
