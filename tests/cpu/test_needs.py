"""A library's release without what this code needs of it is refused by name."""

from __future__ import annotations

import importlib.util

import diffusers
import pytest
import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.base.needs import TESTED, need, need_parameters
from svdq_trt.checkpoint.names import find_tensors
from svdq_trt.models import TWINS, get_model
from svdq_trt.models.attention import JointAttention, check_attention


def test_what_is_there_is_returned():
    assert need("torch", "torch.nn", "Linear") is nn.Linear
    need_parameters("torch", torch.onnx.export, ("dynamo", "custom_translation_table"))


@pytest.mark.parametrize("module,name", [("diffusers.models", "NoSuchModel"), ("diffusers.no_such_module", "Model")])
def test_what_is_missing_is_named_with_the_release(module, name):
    with pytest.raises(UnsupportedError) as caught:
        need("diffusers", module, name)
    text = str(caught.value)
    assert text.startswith(f"diffusers {diffusers.__version__}: no {module}.{name}, want")
    assert f"pip install '{TESTED['diffusers']}'" in text


@pytest.mark.parametrize(
    "library,fix", [("transformers", r'pip install "svdq-trt\[prompts\]"'), ("torchsde", "pip install torchsde")]
)
def test_a_class_whose_own_library_is_missing_names_that(library, fix, monkeypatch):
    """diffusers has a class of the same name then, which is made of nothing."""
    from diffusers.utils.import_utils import DummyObject

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else found(name))
    empty = DummyObject("NewPipeline", (), {"_backends": ["torch", library]})
    monkeypatch.setattr(diffusers, "NewPipeline", empty, raising=False)
    want = f"^diffusers.NewPipeline: no usable Python module {library}, want it, which the class needs. {fix}$"
    with pytest.raises(UnsupportedError, match=want):
        need("diffusers", "diffusers", "NewPipeline")


def test_a_missing_parameter_is_named():
    with pytest.raises(UnsupportedError, match=r"torch .*: no parameter dynamo of .*older_export"):

        def older_export(model, args):
            pass

        need_parameters("torch", older_export, ("args", "dynamo"))


def test_a_model_class_or_converter_that_moved_is_named(monkeypatch):
    import diffusers.loaders.single_file_model as single
    import diffusers.models.transformers.transformer_flux as flux

    monkeypatch.delattr(flux, "FluxTransformer2DModel")
    with pytest.raises(UnsupportedError, match=r"no diffusers\.models\.transformers\.transformer_flux\.FluxTransf"):
        get_model("flux1-tiny").build()
    monkeypatch.delattr(single, "SINGLE_FILE_LOADABLE_CLASSES")
    with pytest.raises(
        UnsupportedError, match=r"no diffusers\.loaders\.single_file_model\.SINGLE_FILE_LOADABLE_CLASSES"
    ):
        find_tensors(get_model("sdxl-tiny"), (), {"input_blocks.0.0.weight": (8, 4, 3, 3)}, "file")


class SomeNewAttnProcessor:
    """Of a later release."""


def attention():
    """A FLUX attention on meta, before anything of ours is in it."""
    return get_model("flux1-tiny").build().get_submodule("transformer_blocks.0.attn")


@pytest.mark.parametrize(
    "change,want",
    [
        (lambda a: setattr(a, "processor", SomeNewAttnProcessor()), "diffusers' processor SomeNewAttnProcessor, want"),
        (lambda a: setattr(a, "norm_v", nn.RMSNorm(8)), "has norm_v, want what JointAttention computes"),
        (lambda a: setattr(a, "rescale_output_factor", 2.0), "rescale_output_factor is 2.0"),
        (lambda a: setattr(a, "residual_connection", True), "residual_connection is True"),
        (lambda a: delattr(a, "heads"), r"diffusers \S+: no heads of attention 'attn'"),
    ],
    ids=["processor", "part", "scale", "residual", "attribute"],
)
def test_an_attention_that_computes_something_else_is_refused(change, want):
    """Our processors take the place of diffusers' own: what a later release adds to these would be left out."""
    attn = attention()
    check_attention("attn", attn, JointAttention)
    change(attn)
    with pytest.raises(UnsupportedError, match=want):
        check_attention("attn", attn, JointAttention)


def test_wrapping_checks_every_attention():
    spec = get_model("pixart-tiny")
    module = spec.build()
    module.transformer_blocks[0].attn1.norm_q = nn.LayerNorm(8)
    with pytest.raises(UnsupportedError, match=r"'transformer_blocks\.0\.attn1': has norm_q"):
        spec.wrap(module)


@pytest.mark.parametrize("name", TWINS)
def test_this_release_has_all_that_is_needed(name):
    spec = get_model(name)
    spec.wrap(spec.build())
