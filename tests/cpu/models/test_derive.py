"""Recipes from traces: those of the named models are frozen, and those of other classes of diffusers are right."""

import pytest
import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import Activation
from svdq_trt.models import MODELS, derive, get_model, stack_group
from svdq_trt.models.recipe import weight_layers
from svdq_trt.models.surgery import install
from tests.harness import denoisers, recipes
from tests.harness.nodes import DenseNode


@pytest.mark.parametrize("name", MODELS)
def test_recipe_is_the_frozen_one(name):
    """Artifacts and LoRA files depend on the names. `python -m tests.harness.recipes` freezes a meant change."""
    spec = get_model(name)
    assert recipes.text(spec.recipe(spec.build())) == (recipes.FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", denoisers.TRACEABLE)
def test_recipe_of_a_class_without_a_file_is_the_frozen_one(name):
    assert recipes.text(recipes.derived(name)) == (recipes.FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", denoisers.TRACEABLE)
@torch.inference_mode()
def test_class_without_a_file_computes_the_same_with_its_nodes(name):
    torch.manual_seed(0)
    module = denoisers.build(name, "cpu")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.08 if parameter.dim() > 1 else 0.5)
    call = denoisers.call(name, 4, 32, "cpu")
    want = module(**call, return_dict=False)[0]
    groups = recipes.derived(name).groups
    stacked = [stack_group(module, group) for group in groups]
    for group, (weight, bias) in zip(groups, stacked, strict=True):
        install(module, group, DenseNode(weight, bias, group.activation))
    assert not {m for g in groups for m in g.members if m != g.node} & weight_layers(module).keys()
    got = module(**call, return_dict=False)[0]
    for one, other in zip(got, want, strict=True):
        assert other.std() > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name,line", denoisers.UNTRACEABLE.items())
def test_class_that_asks_for_values_is_refused_by_the_line_that_does(name, line):
    with pytest.raises(UnsupportedError, match=f"{name}: cannot run without values, at '.*{line}"):
        recipes.derived(name)


def test_a_skip_of_one_part_keeps_the_whole_layer():
    name = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    recipe = recipes.derived("Flux2Transformer2DModel", [f"{name}.mlp"])
    assert not [g for g in recipe.groups if name in g.members]
    assert name in {kept.name for kept in recipe.kept}


class Toy(nn.Module):
    """A transformer of one block, with what each test adds to it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(64, 64), nn.ModuleList([block]), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.last(self.blocks[0](self.first(x))),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.fc1, self.fc2 = (nn.Linear(64, n) for n in (192, 64, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.fc2(self.between(self.fc1(x)))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(hidden)


def groups_of(block: Block) -> dict:
    module = Toy(block).to("meta")
    calls = [{"x": torch.empty(2, length, 64, device="meta")} for length in (8, 16)]
    recipe = derive.recipe(module, calls)
    return {group.node.removeprefix("blocks.0."): group for group in recipe.groups}


def test_activation_that_the_model_cannot_leave_out_stays_outside():
    """A function in the forward of a block that does more: the node has none, but the next one's x is known."""
    groups = groups_of(Block())
    assert list(groups) == ["qkv", "out", "fc1", "fc2"]
    assert groups["fc1"].activation is Activation.NONE
    assert groups["fc2"].x_from is Activation.GELU


def test_activation_whose_input_is_read_twice_stays_outside():
    class Twice(Block):
        def __init__(self):
            super().__init__()
            self.act = nn.GELU()

        def between(self, hidden):
            return self.act(hidden) + hidden

    class Once(Twice):
        def between(self, hidden):
            return self.act(hidden)

    assert groups_of(Once())["fc1"].idle == "blocks.0.act"
    assert groups_of(Twice())["fc1"].activation is Activation.NONE


def test_layer_whose_weight_is_read_elsewhere_stays():
    class Reads(Block):
        def between(self, hidden):
            return hidden.to(self.fc2.weight.dtype)

    assert "fc2" not in groups_of(Reads())


def test_path_that_depends_on_the_size_is_refused():
    class Sized(Block):
        def between(self, hidden):
            return hidden.relu() if hidden.shape[1] > 8 else hidden

    with pytest.raises(UnsupportedError, match="Toy: another path for a larger image or text"):
        groups_of(Sized())


@torch.inference_mode()
def test_a_call_that_was_broken_off_leaves_nothing_behind():
    """Parts hold their node's y between calls of them; a forward that fails in between must not feed the next one."""
    module = denoisers.build("ErnieImageTransformer2DModel", "cpu")
    group = next(g for g in recipes.derived("ErnieImageTransformer2DModel").groups if g.node.endswith("to_qkv"))
    layers = [module.get_submodule(member) for member in group.members]
    install(module, group, DenseNode(*stack_group(module, group), group.activation))
    old, new = torch.zeros(1, 2, 128), torch.ones(1, 2, 128)
    parts = [module.get_submodule(member) for member in group.members]
    parts[0](old)
    for part, layer in zip(parts, layers, strict=True):
        torch.testing.assert_close(part(new), layer(new))
