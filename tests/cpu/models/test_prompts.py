"""What pipelines put around a prompt, against the texts that they give their encoders."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import diffusers
import pytest
import torch

from svdq_trt.base.errors import UsageError
from svdq_trt.models.pipelines import KINDS, PipelineFolder
from svdq_trt.models.prompts import Instruction, OwnTemplate
from tests.harness import tiny_encoders

transformers = pytest.importorskip("transformers", reason="transformers is not installed: tokenizers are its classes")
MOST = 24  # tokens that the denoiser gets


class Ids(torch.nn.Module):
    """An encoder that gives token ids as they are, and keeps the lengths of its texts."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.lengths = []

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        self.lengths.append(input_ids.shape[1])
        states = input_ids[..., None].float()
        return transformers.modeling_outputs.BaseModelOutput(states, (states,) if output_hidden_states else None)


def test_sana_reads_an_instruction_before_a_prompt(tmp_path):
    """The denoiser gets the first token of the text and its end; of a negative prompt it gets all."""
    from diffusers import SanaPipeline

    words, _ = tiny_encoders.gemma_tokenizer(tmp_path)
    pipe, template = SanaPipeline(words, Ids(), None, None, None), Instruction()
    embeds, mask, negative, negative_mask = pipe.encode_prompt(
        " A Fox",
        negative_prompt="Owls",
        device="cpu",
        max_sequence_length=MOST,
        complex_human_instruction=signature(pipe.__call__).parameters["complex_human_instruction"].default,
    )
    assert pipe.text_encoder.lengths == [MOST + template.dropped(SanaPipeline, words, bad) for bad in (False, True)]
    for text, bad, ids, seen in ((" A Fox", False, embeds, mask), ("Owls", True, negative, negative_mask)):
        whole = words(template.text(SanaPipeline, words, text, bad)).input_ids
        kept = whole[:1] + whole[1 + template.dropped(SanaPipeline, words, bad) :]
        assert ids[seen > 0].flatten().tolist() == kept


def test_qwen_image_reads_a_message_before_a_prompt(tmp_path):
    from diffusers import QwenImagePipeline

    words, _ = tiny_encoders.qwen2_5_vl(tmp_path)
    pipe, template = QwenImagePipeline(None, None, Ids(), words, None), OwnTemplate()
    embeds, _ = pipe.encode_prompt(["a fox"], device="cpu")
    ids = words(template.text(QwenImagePipeline, words, "a fox")).input_ids
    assert pipe.text_encoder.lengths == [len(ids)]
    assert embeds.flatten().tolist() == ids[template.dropped(QwenImagePipeline, words) :]
    assert words.decode(ids[template.dropped(QwenImagePipeline, words) :]).startswith("a fox")


@pytest.mark.parametrize("name", KINDS)
def test_the_longest_text_is_that_of_diffusers_class(name, tmp_path):
    kind, cls = KINDS[name], getattr(diffusers, name)
    pipe = cls(**{p.name: None for p in signature(cls).parameters.values() if p.default is p.empty})

    def refused(count):
        with pytest.raises(Exception) as error:  # without components all fail, of a text's length or later
            pipe("a fox", height=512, width=512, max_sequence_length=count)
        return "cannot be greater" in str(error.value)

    if "max_sequence_length" in signature(pipe.__call__).parameters:
        assert [refused(kind.most_tokens or 100_000), refused((kind.most_tokens or 100_000) + 1)] == [
            False,
            kind.most_tokens is not None,
        ]
    if kind.most_tokens is not None:
        folder = PipelineFolder(tmp_path, replace(kind, template=None), {}, {})
        assert folder.parts("float16", kind.most_tokens + kind.clip_tokens) == []
        with pytest.raises(UsageError, match=f"--tokens: .*, want at most {kind.most_tokens + kind.clip_tokens}, as a"):
            folder.parts("float16", kind.most_tokens + kind.clip_tokens + 1)
