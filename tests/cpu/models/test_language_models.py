"""Language models of which a pipeline reads states: graphs and stand-ins against transformers' modules."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.build.graph import export_model
from svdq_trt.checkpoint.parts import load_part
from svdq_trt.models.part_modules import TextEncoder
from svdq_trt.models.parts import full_config
from svdq_trt.models.pipelines import KINDS
from svdq_trt.runtime.onnx_session import OnnxSession
from tests.harness.language_models import LANGUAGE_MODELS, MISTRAL3, QWEN2_5_VL, QWEN3
from tests.harness.part_graphs import SIZES, encoder, ids, part, saved

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")


@pytest.mark.parametrize("dtype,most", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_gives_the_states_of_transformers(name, dtype, most, tmp_path):
    """By ONNX Runtime, which computes bf16 in f32, at padding of either side, against the module with its own masks."""
    torch.manual_seed(0)
    class_name, config = LANGUAGE_MODELS[name]
    one = part(class_name, config, dtype=dtype)
    module = one.build().eval()
    text, lengths = ids(3, 12), torch.tensor([[12], [5], [9]])
    place = torch.arange(12)
    masks = {"right": (place < lengths).long(), "left": (place >= 12 - lengths).long()}
    written_out = module.config._attn_implementation == "eager"  # whose tokens that see nothing have other values
    told = {side: mask > 0 if written_out else mask >= 0 for side, mask in masks.items()}
    with torch.no_grad():
        wanted = {
            side: module(text, attention_mask=mask, output_hidden_states=True, use_cache=False)
            for side, mask in masks.items()
        }
    export_model(module, one, SIZES.ranges(), tmp_path / "model.onnx", lambda *_: None)
    with OnnxSession(tmp_path / "model.onnx", device="cpu", threads=1) as session:
        runner = SimpleNamespace(run=session.run, inputs=SIZES.tensors(one.inputs, one.torch_dtype))
        stand_in = TextEncoder(runner, "text_encoder", class_name, full_config(class_name, config), one.torch_dtype)
        for side, mask in masks.items():
            want, got = wanted[side], stand_in(text, attention_mask=mask, output_hidden_states=True)
            assert len(got.hidden_states) == len(want.hidden_states) == 4
            for a, b in zip(want.hidden_states, got.hidden_states, strict=True):
                error, size = (value[told[side]].double().norm() for value in (a.double() - b.double(), a))
                assert error < most * size, (side, float(error / size))
            if class_name != "Mistral3ForConditionalGeneration":  # which gives words, of which there are none
                assert got.last_hidden_state is got.hidden_states[-1]
                last = stand_in(text, mask)
                assert torch.equal(last[0], got.last_hidden_state) and last.hidden_states is None
    with pytest.raises(UnsupportedError, match=r"pipe\.text_encoder: use_cache: True, want False"):
        stand_in(text, use_cache=True)


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize(
    "class_name,config",
    [
        ("Qwen3ForCausalLM", QWEN3),
        ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
        ("Mistral3ForConditionalGeneration", MISTRAL3),
    ],
)
def test_of_a_language_model_its_layers_are_read(class_name, config, renamed, tmp_path):
    """From a file with the names of today's module, too: transformers writes those of former ones."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    whole = saved(class_name, config, tmp_path)
    if renamed:
        save_file(whole.state_dict(), tmp_path / "text_encoder" / "model.safetensors")
    one = part(class_name, config)
    module = load_part(one, tmp_path, "", None)
    own = whole.get_decoder().state_dict()
    assert one.build().state_dict().keys() == module.state_dict().keys() == own.keys()
    stand_in, _ = encoder(one, module=module)
    text = ids(3, 12)
    call = {"input_ids": text, "attention_mask": (text != 59).long(), "output_hidden_states": True, "use_cache": False}
    want, got = (model(**call) for model in (whole, stand_in))
    assert type(got) is CausalLMOutputWithPast
    for a, b in zip(want.hidden_states, got.hidden_states, strict=True):
        torch.testing.assert_close(b, a)
    with pytest.raises(UnsupportedError, match="output_hidden_states: False, want True: the engine gives states"):
        stand_in(text)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3-windowed", "gemma2", "mistral"])
@pytest.mark.parametrize("states", [(1,), (-2, 1), (-1,)])
def test_of_a_language_model_no_layer_is_kept_that_nothing_reads(name, states, tmp_path):
    class_name, config = LANGUAGE_MODELS[name]
    whole = saved(class_name, config, tmp_path)
    one = replace(part(class_name, config), states=states)
    module = load_part(one, tmp_path, "", None)
    assert len(module.layers) == len(one.build().layers) == max(index % 4 for index in states)
    assert one.outputs[0].dims[0] == len(states)
    stand_in, _ = encoder(one, module=module, states=states)
    text = ids(3, 12)
    call = {"input_ids": text, "attention_mask": (text != 59).long(), "output_hidden_states": True, "use_cache": False}
    want, got = whole(**call), stand_in(**call)
    told = text != 59  # transformers computes padding otherwise where attention is written out, as in Gemma
    for index in states:
        torch.testing.assert_close(got.hidden_states[index][told], want.hidden_states[index][told])
    if states == (-1,) and name != "mistral":
        assert got.last_hidden_state is got.hidden_states[-1]
    with pytest.raises(
        UnsupportedError, match=r"text_encoder: hidden_states: 0 is read, want one of [\d, ]+, which the"
    ):
        got.hidden_states[0]


@torch.no_grad()
def test_a_state_that_no_layer_comes_before(tmp_path):
    """The embeddings are read, as the second to last state of a single layer."""
    config = QWEN3 | {"num_hidden_layers": 1}
    whole = saved("Qwen3Model", config, tmp_path)
    one, text = replace(part("Qwen3Model", config), states=(-2,)), ids(2, 12)
    (got,) = one.wrap(load_part(one, tmp_path, "", None))(text, torch.ones_like(text))
    torch.testing.assert_close(got, whole.embed_tokens(text))


@torch.no_grad()
def test_states_are_indexed_as_transformers_tuple_is():
    one = replace(part("Qwen3Model", QWEN3), states=(1, 2))
    stand_in, _ = encoder(one, states=(1, 2))
    states = stand_in(ids(2, 12), output_hidden_states=True).hidden_states
    first, second = states[1:3]
    assert len(states) == 4 and states[-3] is first and states[2] is second and states[5:] == ()
    for index in (4, -5):
        with pytest.raises(IndexError):
            states[index]
    with pytest.raises(UnsupportedError, match="hidden_states: 3 is read, want one of 1, 2, which the engine gives"):
        states[1:]


@torch.no_grad()
def test_an_engine_that_was_built_for_other_states():
    """One with all of them serves any reader; one with others is refused."""
    text = ids(2, 12)
    all_states = encoder(part("Qwen3Model", QWEN3), states=(-2,))[0](text, output_hidden_states=True).hidden_states
    assert type(all_states) is tuple and len(all_states) == 4
    with pytest.raises(UnsupportedError, match=r"hidden_states: 2 states, want 1 or all 4\. Build it again: svdq-trt"):
        other, _ = encoder(replace(part("Qwen3Model", QWEN3), states=(1, 2)), states=(-2,))
        other(text, output_hidden_states=True)


@pytest.mark.parametrize("name", ["Flux2Pipeline", "Flux2KleinPipeline"])
def test_states_are_those_that_diffusers_class_reads(name):
    call = getattr(pytest.importorskip("diffusers"), name).__call__
    assert KINDS[name].states == inspect.signature(call).parameters["text_encoder_out_layers"].default
