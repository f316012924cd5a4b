"""A config.json is compared by what diffusers makes of it: other spellings of a model are that model."""

import pytest

from svdq_trt.base.errors import ArtifactError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.models import get_model
from tests.harness.published import assert_equal, own_module, publish

#: (model, keys of a config.json): another spelling of the same arithmetic
SAME = [
    ("sdxl-tiny", {"sample_size": 64}),  # a hint for pipelines
    ("sdxl-tiny", {"cross_attention_dim": [128] * 3, "layers_per_block": [1] * 3, "upcast_attention": False}),
    ("sdxl-tiny", {"only_cross_attention": [False] * 3, "mid_block_only_cross_attention": False, "dropout": 0.1}),
    ("flux1-tiny", {"out_channels": 16}),
    ("pixart-tiny", {"sample_size": 32, "interpolation_scale": 4, "use_additional_conditions": None}),
    ("sana-tiny", {"sample_size": 64}),  # no positions
    ("sd3-tiny", {"sample_size": 64, "dual_attention_layers": [0, 0]}),  # its positions are weights
]
#: (model, keys of a config.json, the key that is named): another model
OTHER = [
    ("pixart-tiny", {"sample_size": 32}, "sample_size is 32, want 16"),  # positions
    ("pixart-tiny", {"interpolation_scale": None, "sample_size": 16}, "interpolation_scale is None, want 2"),
    ("pixart-sigma", {"use_additional_conditions": None}, "use_additional_conditions is None, want False"),
    ("sana-tiny", {"interpolation_scale": 2}, "interpolation_scale is 2, want None"),
    ("sana-tiny", {"timestep_scale": 0.001}, "timestep_scale is 0.001, want 1.0"),  # by the pipeline
    ("sana-tiny", {"norm_eps": 1e-5}, "norm_eps is 1e-05"),
    ("sd3-tiny", {"pos_embed_max_size": 48}, "pos_embed_max_size is 48, want 24"),
    ("sd3-tiny", {"qk_norm": None}, "qk_norm is None, want 'rms_norm'"),
    ("flux1-tiny", {"axes_dims_rope": [28, 8, 28]}, r"axes_dims_rope is \[28, 8, 28\]"),
    ("flux1-tiny", {"num_layers": 10**12}, "num_layers is 1000000000000, want 2"),
    ("flux1-tiny", {"attention_head_dim": {"a": [None]}}, "attention_head_dim is {'a'"),
    ("sdxl-tiny", {"center_input_sample": True}, "center_input_sample is True"),
    ("sdxl-tiny", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
    ("sdxl-tiny", {"mid_block_scale_factor": 2}, "mid_block_scale_factor is 2"),
    ("sdxl-tiny", {"dropout": 0.1, "act_fn": "gelu"}, "act_fn is 'gelu'"),
]


@pytest.mark.parametrize("name,changes", SAME)
def test_other_spelling_of_the_model_is_accepted(name, changes):
    spec = get_model(name)
    compare_config(spec, {**spec.config, **changes}, "config.json")


@pytest.mark.parametrize("name,changes,text", OTHER)
def test_other_model_is_refused_by_the_key_that_makes_it_one(name, changes, text):
    spec = get_model(name)
    with pytest.raises(ArtifactError, match=f"config.json: {text}"):
        compare_config(spec, {**spec.config, **changes}, "config.json")


@pytest.mark.parametrize("name,changes", [row for row in SAME if row[0] in ("pixart-tiny", "sana-tiny")])
def test_accepted_spelling_computes_what_diffusers_computes(tmp_path, name, changes):
    """from_pretrained reads the changed config.json, ours the model's own config."""
    spec = get_model(name)
    publish(own_module(spec, 5, **changes), tmp_path, spec.torch_dtype)
    assert_equal(spec, tmp_path)
