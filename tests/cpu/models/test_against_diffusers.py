"""Each family against diffusers' own model of the same checkpoint: what from_pretrained opens is what we compute.

No side is made by the other: the folder is diffusers', and every tensor that it saves has values of its own.
"""

import pytest
from safetensors.torch import load_file, save_file

from svdq_trt.base.errors import ArtifactError, ShapeError
from svdq_trt.checkpoint import load
from svdq_trt.models import TWINS, get_model
from tests.harness.published import assert_equal, own_module, publish


@pytest.mark.parametrize("name", TWINS)
def test_model_equals_diffusers_own_of_the_same_folder(tmp_path, name):
    spec = get_model(name)
    publish(own_module(spec, 5), tmp_path, spec.torch_dtype)
    assert_equal(spec, tmp_path, [(128, 128), (64, 96), (160, 64)])


def test_table_of_positions_is_the_checkpoints_and_not_the_configs(tmp_path):
    """The published sample_size makes no difference where the table lies in the file: diffusers reads the table."""
    spec = get_model("sd3-tiny")
    publish(own_module(spec, 5, sample_size=32), tmp_path, spec.torch_dtype)
    assert_equal(spec, tmp_path)


def test_table_that_is_not_of_rows_and_columns_is_refused(tmp_path):
    spec = get_model("sd3-tiny")
    module = own_module(spec, 5)
    module.pos_embed.pos_embed[0, 30, 7] += 0.25
    publish(module, tmp_path, spec.torch_dtype)
    with pytest.raises(ArtifactError, match=r"'pos_embed\.pos_embed': positions that depend on row and column at once"):
        load(spec, str(tmp_path))


def test_checkpoint_without_its_table_is_refused(tmp_path):
    spec = get_model("sd3-tiny")
    publish(own_module(spec, 5), tmp_path, spec.torch_dtype)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["pos_embed.pos_embed"]
    save_file(tensors, file)
    with pytest.raises(ShapeError, match=r"1 missing of \d+ tensors \(pos_embed\.pos_embed\)"):
        load(spec, str(tmp_path))


def test_random_weights_have_the_classs_own_table():
    spec = get_model("sd3-tiny")
    embed = spec.model_class()(**spec.config).pos_embed
    parts = {name: t.bfloat16() for name, t in spec.tables[0].split("", embed.pos_embed).items()}
    ours = load(spec, random_seed=5).state_dict()
    assert all(ours[name].equal(part) for name, part in parts.items())
