"""Graphs of text encoders: CLIP's, T5's, and language models of which the states are read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.base.needs import need
from svdq_trt.models.part_graph import BATCH, PartGraph
from svdq_trt.models.spec import TensorIO

#: transformers' name of `only_of_seen`
SEEING = "svdq_only_of_seen"


class ClipGraph(PartGraph):
    """CLIP's text encoder: the last state after its norm, the pooled one, and the states of all layers [layers + 1]."""

    library = "transformers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Token ids, of one length."""
        return (TensorIO("input_ids", "int64", (BATCH, config.max_position_embeddings)),)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """States [B, T, C] and pooled values [B, C]."""
        states = (BATCH, config.max_position_embeddings, config.hidden_size)
        return (
            TensorIO("last_hidden_state", "act", states),
            TensorIO("pooler_output", "act", (BATCH, config.hidden_size)),
            TensorIO("hidden_states", "act", (config.num_hidden_layers + 1, *states)),
        )

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs, in order."""
        out = self.model(input_ids, output_hidden_states=True)
        return out.last_hidden_state, self._pooled(input_ids, out), torch.stack(out.hidden_states)

    def _pooled(self, input_ids: Tensor, out: Any) -> Tensor:
        """The last state at each text's end: where the largest id is, by an older config, else the first end token.

        transformers takes it by an ArgMax of whole numbers, which core 1.6 of TensorRT-RTX does not build.
        """
        end = self.model.config.eos_token_id
        values = input_ids.int() if end == 2 else (input_ids == end).int()
        left = torch.arange(values.shape[1], 0, -1, dtype=torch.int32, device=values.device)
        most = (left * (values == values.amax(1, keepdim=True))).amax(1)
        states: Tensor = out.last_hidden_state
        index = (values.shape[1] - most).long()[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, index)[:, 0]


class ProjectedClipGraph(ClipGraph):
    """CLIP's text encoder with a projection, whose pooled output is called text_embeds."""

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """As ClipGraph's, with the projection in place of the pooled state."""
        last, _, states = ClipGraph.outputs(config, tokens)
        return last, TensorIO("text_embeds", "act", (BATCH, config.projection_dim)), states

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs, in order."""
        out = self.model(input_ids, output_hidden_states=True)
        embeds = self.model.text_projection(self._pooled(input_ids, out))
        return out.last_hidden_state, embeds, torch.stack(out.hidden_states)


class MaskedTextGraph(PartGraph):
    """An encoder of token ids and their mask, of one length."""

    library = "transformers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Token ids and mask [B, T]."""
        return tuple(TensorIO(name, "int64", (BATCH, tokens)) for name in ("input_ids", "attention_mask"))


class T5Graph(MaskedTextGraph):
    """T5's encoder. Its mask is ones where a pipeline gives none, which adds zero to the scores."""

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The last state [B, T, C]."""
        return (TensorIO("last_hidden_state", "act", (BATCH, tokens, config.d_model)),)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last state."""
        state: Tensor = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return state


def only_of_seen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **more: Any
) -> tuple[Tensor, Tensor | None]:
    """A module's written-out attention [B, T, heads, C], with zeros for a token that the added mask shows nothing."""
    written_out = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    out, weights = written_out(module, query, key, value, attention_mask, **more)
    sees = attention_mask.amax(-1)[:, 0, :, None, None] > torch.finfo(attention_mask.dtype).min
    return torch.where(sees, out, torch.zeros_like(out)), weights


def write_out(module: Any, attention: str) -> None:
    """Let the attentions of a module of transformers be written out, by transformers' name of the function."""
    need("transformers", "transformers", "AttentionInterface").register(SEEING, only_of_seen)
    module.set_attn_implementation(attention)


def from_the_first(states: Sequence[int], layers: int) -> tuple[int, ...]:
    """Indices of the states of a model of so many layers, of which there is one more, without negative ones.

    Raises:
        ValueError: there is no such state.
    """
    if missing := [index for index in states if not -layers - 1 <= index <= layers]:
        raise ValueError(f"{layers} layers, where the state after {missing[0]} is read")
    return tuple(index % (layers + 1) for index in states)


class LanguageModelGraph(MaskedTextGraph):
    """A language model's states of all layers [layers + 1], the last one behind its norm; what else it has is no part.

    Or some states alone. Then layers that none of them needs are not there, and a state that is not the last is not
    behind the norm.

    The masks are written out, as transformers makes them by code that cannot be exported: a token sees itself and what
    is before it, as far as a layer's window reaches and the mask says. Positions count from the sequence's start,
    padding included. A token that sees none, as padding in front does, gets zeros from attention, as torch's own gives
    it and not transformers' written-out one: FLUX.2 dev's denoiser reads the padding, too.
    """

    attention = SEEING
    states: Sequence[int] = ()

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The states [layers + 1, B, T, C]."""
        text = config.get_text_config()
        shape = (text.num_hidden_layers + 1, BATCH, tokens, text.hidden_size)
        return (TensorIO("hidden_states", "act", shape),)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states."""
        call = states_call(self.model, input_ids, attention_mask)
        return stack_states(self.model(**call), self.states)


def states_call(module: Any, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Keyword arguments by which a language model gives the states of all layers, for a text and its mask [B, T]."""
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    distance = place[:, None] - place  # of a query to each key
    seen = (distance >= 0) & (attention_mask[:, None, None] > 0)
    window, types = module.config.sliding_window, getattr(module.config, "layer_types", None)
    kinds = {"full_attention": lambda: seen, "sliding_attention": lambda: seen & (distance < window)}
    if types is None:  # all layers are of one kind
        masks: Any = _added(kinds["full_attention" if window is None else "sliding_attention"](), module.dtype)
    else:
        masks = {kind: _added(keys(), module.dtype) for kind, keys in kinds.items() if kind in types}
    return {"input_ids": input_ids, "attention_mask": masks, "use_cache": False, "output_hidden_states": True}


def stack_states(out: Any, states: Sequence[int]) -> Tensor:
    """The states of a call as one tensor, or some of them, counted from the first [states, B, T, C]."""
    return torch.stack([out.hidden_states[i] for i in states] if states else out.hidden_states)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores [B, 1, T, T]."""
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)
