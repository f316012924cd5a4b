"""A pipeline's language model in 4 bits: its layers as a model that no file of ours names, by a description as JSON.

The description travels in the engine's manifest, as that of described.py does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from torch import Tensor

from svdq_trt.base.errors import ArtifactError, UnsupportedError, first_line
from svdq_trt.models.family import Family
from svdq_trt.models.parts import GRAPHS, Part
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import Request, padding_mask
from svdq_trt.models.text_graphs import LanguageModelGraph, stack_states, states_call, write_out

#: how the text of a description begins, and no other's
MARK = '{"language_model"'
#: tensors of older files that transformers computes by now
_ANGLES = r".*\.rotary_emb\.inv_freq"


@dataclass(frozen=True)
class LanguageModel:
    """What is described.

    Attributes:
        name: of the model. part: the pipeline's part that it is in 16 bit. variant: of its weights, as in ModelSpec.
    """

    name: str
    part: Part
    variant: str = ""

    def to_text(self) -> str:
        """The description as JSON; equal ones give equal text."""
        return json.dumps({"language_model": msgspec.to_builtins(self)}, sort_keys=True)


def is_language_model(part: Part) -> bool:
    """Whether a part is one, and of a class that parts have."""
    return issubclass(GRAPHS.get(part.class_name, {}).get(part.role, object), LanguageModelGraph)


@functools.lru_cache(maxsize=8)
def spec_of(text: str) -> ModelSpec:
    """The model of a description as JSON.

    Raises:
        ArtifactError: it is none, or of a config that its class refuses. UnsupportedError: transformers is missing.
    """
    try:
        found = msgspec.json.decode(text, type=dict[str, LanguageModel])["language_model"]
        part, one = found.part, (1, 1, 1)
        if not is_language_model(part):
            raise ValueError(f"a {part.class_name[:80]}")
        spec = ModelSpec(
            name=found.name,
            title=f"{part.class_name} of a pipeline",
            description=text,
            subfolder=part.component,
            variant=found.variant,
            library="transformers",
            class_path=f"svdq_trt.models.language_module:{part.module_class.__name__}",
            config=MappingProxyType(part.module_config.to_dict()),
            act_dtype=part.act_dtype,
            pixel_multiple=1,
            calibration_pixels=1,
            profile=Profile(batch=(1, 1, 4), height=one, width=one, tokens=(part.tokens,) * 3),
            inputs=_of_any_length(part.inputs, at=1),
            outputs=_of_any_length(part.outputs, at=2),
            family=LanguageModelFamily(part),
            unread="|".join((_ANGLES, *part.unread)),
        )
        return replace(spec, parameters=sum(p.numel() for p in spec.build(tables=False).parameters()))
    except UnsupportedError:
        raise
    except Exception as error:  # whatever a class makes of values of any type
        raise ArtifactError("the model's description", first_line(error), "one that a build wrote") from error


def _of_any_length(ios: Sequence[TensorIO], at: int) -> tuple[TensorIO, ...]:
    """Inputs or outputs with an axis in the place of the text's length, by which tokens are told from rows."""
    return tuple(replace(io, dims=(*io.dims[:at], Axis("tokens"), *io.dims[at + 1 :])) for io in ios)


class LanguageModelFamily(Family):
    """A language model's layers as their part has them: attention written out, without what no state is behind."""

    synthetic = (("attention_mask", padding_mask),)

    def __init__(self, part: Part) -> None:
        self._part = part

    def fill_input(self, name: str, request: Request) -> Tensor:
        """Any tokens for a text."""
        if name != "input_ids":
            return super().fill_input(name, request)
        words = self._part.module_config.vocab_size
        return torch.randint(words, request.shape, generator=request.rng)

    def prepare(self, module: Any) -> None:
        """As Part.wrap and Part.cut do."""
        write_out(module, LanguageModelGraph.attention)
        self._part.cut(module)
        module.states = self._part.counted_states()

    @staticmethod
    def forward(module: Any, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The states [states, B, T, C] that are read."""
        out = type(module).forward(module, **states_call(module, input_ids, attention_mask))
        return (stack_states(out, module.states),)
