"""The models of a pipeline beside its denoiser, in 16 bit: text encoders, and the halves of an autoencoder.

Each half is a graph of its own, as a picture needs one of them only. Attention is written out, as a product, a softmax
and a product: TensorRT builds the ONNX op for head sizes and dtypes that it has a kernel for, and refuses the
autoencoder's one head of 512 values and T5's added positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.base.needs import need
from svdq_trt.models.autoencoder_config import has_frames
from svdq_trt.models.autoencoder_graphs import (
    DCEncoderGraph,
    DecoderGraph,
    EncoderGraph,
    NormalizedDecoderGraph,
    NormalizedEncoderGraph,
)
from svdq_trt.models.denoiser import constructor_config
from svdq_trt.models.one_frame import to_one_frame
from svdq_trt.models.part_graph import PartGraph
from svdq_trt.models.spec import TensorIO
from svdq_trt.models.special_attention import write_out_attention
from svdq_trt.models.text_graphs import (
    ClipGraph,
    LanguageModelGraph,
    ProjectedClipGraph,
    T5Graph,
    from_the_first,
    write_out,
)

#: class of a component -> its graphs by their roles
GRAPHS: dict[str, dict[str, type[PartGraph]]] = {
    "CLIPTextModel": {"": ClipGraph},
    "CLIPTextModelWithProjection": {"": ProjectedClipGraph},
    "T5EncoderModel": {"": T5Graph},
    "Qwen3Model": {"": LanguageModelGraph},
    "Qwen3ForCausalLM": {"": LanguageModelGraph},
    "Qwen2_5_VLForConditionalGeneration": {"": LanguageModelGraph},
    "Gemma2Model": {"": LanguageModelGraph},
    "Mistral3ForConditionalGeneration": {"": LanguageModelGraph},
    "AutoencoderKL": {"decoder": DecoderGraph, "encoder": EncoderGraph},
    "AutoencoderKLFlux2": {"decoder": NormalizedDecoderGraph, "encoder": NormalizedEncoderGraph},
    "AutoencoderDC": {"decoder": DecoderGraph, "encoder": DCEncoderGraph},
    "AutoencoderKLQwenImage": {"decoder": DecoderGraph, "encoder": EncoderGraph},
}

#: class of a language model that has a head for words, or a vision tower -> the class of its layers
_LAYERS = {
    "Qwen3ForCausalLM": "Qwen3Model",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLTextModel",
    "Mistral3ForConditionalGeneration": "MistralModel",
}


def is_autoencoder(class_name: str) -> bool:
    """Whether a class of GRAPHS is an autoencoder's; the others are text encoders'."""
    return "decoder" in GRAPHS[class_name]


def graph_name(component: str, role: str) -> str:
    """Name of a component's graph: text_encoder_2, vae_decoder."""
    return f"{component}_{role}" if role else component


@dataclass(frozen=True)
class Part:
    """One graph beside a denoiser.

    Attributes:
        component: of its module in the pipeline: text_encoder_2, vae. role: of the graph, where a module has several.
        class_name: of the module, one of GRAPHS. config: its config.json.
        act_dtype: dtype of its weights and activations. tokens: length of the text; CLIP's is in its config.
        states: of a language model's layers, those that are read, as indices of transformers' hidden_states; none are
            named where all are.
    """

    component: str
    role: str
    class_name: str
    config: Mapping[str, Any]
    act_dtype: str
    tokens: int
    states: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of its engine's folder: text_encoder_2, vae_decoder."""
        return graph_name(self.component, self.role)

    @property
    def graph(self) -> type[PartGraph]:
        """The graph's class."""
        return GRAPHS[self.class_name][self.role]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The act dtype as a torch.dtype."""
        found: torch.dtype = getattr(torch, self.act_dtype)
        return found

    @property
    def inputs(self) -> tuple[TensorIO, ...]:
        """Inputs of the graph, in order."""
        return self.graph.inputs(full_config(self.class_name, self.config), self.tokens)

    @property
    def outputs(self) -> tuple[TensorIO, ...]:
        """Outputs of the graph, in order."""
        found = self.graph.outputs(full_config(self.class_name, self.config), self.tokens)
        if not self.states:
            return found
        (all_states,) = found
        return (replace(all_states, dims=(len(self.states), *all_states.dims[1:])),)

    @property
    def wrapped(self) -> str:
        """Attribute of what `wrap` returns that holds the module itself."""
        return "model"

    def counted_states(self) -> tuple[int, ...]:
        """`states`, counted from the first."""
        return from_the_first(self.states, self._layers) if self.states else ()

    @property
    def module_class(self) -> Any:
        """The class of what the graph computes: the component's, or that of its layers."""
        return need(self.graph.library, self.graph.library, _LAYERS.get(self.class_name, self.class_name))

    @property
    def module_config(self) -> Any:
        """The config of a `module_class`.

        Raises:
            ValueError: fewer layers than `states` name, or a language model of another class beside the vision tower.
        """
        config = full_config(self.class_name, self.config)
        found = config.get_text_config() if self.class_name in _LAYERS else config
        if self.class_name in _LAYERS and type(found) is not (own := self.module_class.config_class):
            raise ValueError(f"a text_config of type {found.model_type} instead of {own.model_type}")
        if self.states:
            # At least one: transformers gathers states, the first one too, at layers.
            found.num_hidden_layers = max(1, *self.counted_states())
            if getattr(found, "layer_types", None):
                found.layer_types = found.layer_types[: found.num_hidden_layers]
        return found

    def build(self) -> nn.Module:
        """What the graph computes, on the CPU, with its class's random weights from torch's generator."""
        cls, config = self.module_class, self.module_config
        module: nn.Module = cls.from_config(config) if self.graph.library == "diffusers" else cls(config)
        for value in module.state_dict(keep_vars=True).values():  # without angles of rotations, which stay in f32
            if value.is_floating_point():
                value.data = value.data.to(self.torch_dtype)
        return self.cut(module)

    def cut(self, module: nn.Module) -> nn.Module:
        """`module` of `module_class` and `module_config`, without its last norm where no state behind it is read."""
        if self._ends_early:
            module.norm = nn.Identity()
        return module

    @property
    def unread(self) -> tuple[str, ...]:
        """Patterns of names, in a file of a language model's layers, of what is behind all states that are read."""
        if not self._ends_early:
            return ()
        behind = range(self.module_config.num_hidden_layers, self._layers)
        return (r"norm\.weight", *(rf"layers\.{layer}\..*" for layer in behind))

    def wrap(self, module: Any) -> nn.Module:
        """`module` as the graph, in eval mode and without gradients; its attention is written out, see above."""
        if self.graph.library == "transformers":
            write_out(module, self.graph.attention)
        elif has_frames(module.config):
            to_one_frame(module)
        else:
            write_out_attention(module)
        graph = self.graph(module)
        if isinstance(graph, LanguageModelGraph):
            graph.states = self.counted_states()
        return graph.eval().requires_grad_(False)

    def example_inputs(self, seed: int = 0, **sizes: int) -> tuple[Tensor, ...]:
        """Ones in the order of `inputs`, to trace with: only their sizes count."""
        return tuple(torch.ones(io.shape(sizes), dtype=io.torch_dtype(self.torch_dtype)) for io in self.inputs)

    @property
    def _ends_early(self) -> bool:
        """Whether no state is read that is behind the last layer and its norm."""
        return bool(self.states) and max(self.counted_states()) < self._layers

    @property
    def _layers(self) -> int:
        """Of a language model, as its config has them."""
        return int(full_config(self.class_name, self.config).get_text_config().num_hidden_layers)


def part_class(class_name: str) -> Any:
    """The class of a component, by its name in GRAPHS."""
    import diffusers  # noqa: F401 - for build/code.py, as in models/spec.py
    import transformers  # noqa: F401

    library = next(iter(GRAPHS[class_name].values())).library
    return need(library, library, class_name)


def full_config(class_name: str, config: Mapping[str, Any]) -> Any:
    """A component's config with its class's defaults, as the module has it."""
    cls = part_class(class_name)
    if hasattr(cls, "config_class"):  # transformers
        return cls.config_class(**config)
    return constructor_config(cls, config)
