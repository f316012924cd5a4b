"""The models of a pipeline beside its denoiser, in 16 bit: text encoders, and the halves of an autoencoder.

Each half is a graph of its own, as a picture needs one of them only. Attention is written out, as a product, a softmax
and a product: TensorRT builds the ONNX op for head sizes and dtypes that it has a kernel for, and refuses the
autoencoder's one head of 512 values and T5's added positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from svdq_trt.base.needs import need
from svdq_trt.models.autoencoder_config import has_frames, latent_axes, latent_channels, pixel_axes, pixel_channels
from svdq_trt.models.denoiser import constructor_config
from svdq_trt.models.one_frame import to_one_frame
from svdq_trt.models.spec import Axis, TensorIO
from svdq_trt.models.special_attention import write_out_attention

_BATCH = Axis("batch")


class PartGraph(nn.Module, ABC):
    """A module with the inputs and outputs of its graph.

    Attributes:
        library: where the module's class is, "transformers" or "diffusers".
    """

    library: ClassVar[str]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @staticmethod
    @abstractmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The graph's inputs, for a module with that config and length of text, which CLIP has in its config."""

    @staticmethod
    @abstractmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The graph's outputs."""


class ClipGraph(PartGraph):
    """CLIP's text encoder: the last state after its norm, the pooled one, and the states of all layers [layers + 1]."""

    library = "transformers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Token ids, of one length."""
        return (TensorIO("input_ids", "int64", (_BATCH, config.max_position_embeddings)),)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """States [B, T, C] and pooled values [B, C]."""
        states = (_BATCH, config.max_position_embeddings, config.hidden_size)
        return (
            TensorIO("last_hidden_state", "act", states),
            TensorIO("pooler_output", "act", (_BATCH, config.hidden_size)),
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
        return last, TensorIO("text_embeds", "act", (_BATCH, config.projection_dim)), states

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
        return tuple(TensorIO(name, "int64", (_BATCH, tokens)) for name in ("input_ids", "attention_mask"))


class T5Graph(MaskedTextGraph):
    """T5's encoder. Its mask is ones where a pipeline gives none, which adds zero to the scores."""

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The last state [B, T, C]."""
        return (TensorIO("last_hidden_state", "act", (_BATCH, tokens, config.d_model)),)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last state."""
        state: Tensor = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return state


class LanguageModelGraph(MaskedTextGraph):
    """A language model's states of all layers [layers + 1], the last one behind its norm; what else it has is no part.

    The masks are written out, as transformers makes them by code that cannot be exported: a token sees itself and what
    is before it, as far as a layer's window reaches and the mask says. Positions count from the sequence's start,
    padding included. A token that sees none, as padding in front does, has values without a meaning.
    """

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The states [layers + 1, B, T, C]."""
        text = config.get_text_config()
        shape = (text.num_hidden_layers + 1, _BATCH, tokens, text.hidden_size)
        return (TensorIO("hidden_states", "act", shape),)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states."""
        model, place = self.model, torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = place[:, None] - place  # of a query to each key
        seen = (distance >= 0) & (attention_mask[:, None, None] > 0)
        masks = {"full_attention": self._added(seen)}
        if "sliding_attention" in model.config.layer_types:
            masks["sliding_attention"] = self._added(seen & (distance < model.config.sliding_window))
        out = model(input_ids, attention_mask=masks, use_cache=False, output_hidden_states=True)
        return torch.stack(out.hidden_states)

    def _added(self, seen: Tensor) -> Tensor:
        """What is added to the scores [B, 1, T, T]."""
        dtype = self.model.dtype
        return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


class DecoderGraph(PartGraph):
    """An autoencoder's decoder: latents to pixels from -1 to 1."""

    library = "diffusers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Latents [B, C, H, W]."""
        return (TensorIO("latent", "act", (_BATCH, latent_channels(config), *latent_axes(config))),)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Pixels [B, 3, H, W]."""
        return (TensorIO("image", "act", (_BATCH, pixel_channels(config), *pixel_axes(config))),)

    def forward(self, latent: Tensor) -> Tensor:
        """Pixels."""
        image: Tensor = self.model.decode(latent, return_dict=False)[0]
        return image


class EncoderGraph(PartGraph):
    """An autoencoder's encoder: pixels from -1 to 1 to mean and log variance of the latents."""

    library = "diffusers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Pixels [B, 3, H, W]."""
        return (TensorIO("image", "act", (_BATCH, pixel_channels(config), *pixel_axes(config))),)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Moments [B, 2C, H, W]."""
        return (TensorIO("moments", "act", (_BATCH, 2 * latent_channels(config), *latent_axes(config))),)

    def forward(self, image: Tensor) -> Tensor:
        """Moments."""
        moments: Tensor = self.model.encode(image).latent_dist.parameters
        return moments


class NormalizedDecoderGraph(DecoderGraph):
    """FLUX.2's decoder, of latents as the denoiser has them: normalized in patches, by statistics in the weights.

    So the stand-in needs no weights: it tells the pipeline a mean of 0 and a deviation of 1.
    """

    def forward(self, latent: Tensor) -> Tensor:
        """Pixels."""
        mean, deviation = _statistics(self.model)
        return super().forward(_each_patch(latent, lambda patches: patches * deviation + mean))


class NormalizedEncoderGraph(EncoderGraph):
    """FLUX.2's encoder, to the moments of latents as NormalizedDecoderGraph takes them."""

    def forward(self, image: Tensor) -> Tensor:
        """Moments."""
        mean, deviation = _statistics(self.model)
        means, logs = super().forward(image).chunk(2, dim=1)
        means = _each_patch(means, lambda patches: (patches - mean) / deviation)
        return torch.cat((means, _each_patch(logs, lambda patches: patches - 2 * deviation.log())), dim=1)


class DCEncoderGraph(EncoderGraph):
    """AutoencoderDC's encoder: pixels to latents, of which it has no distribution."""

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Latents [B, C, H, W]."""
        return DecoderGraph.inputs(config, tokens)

    def forward(self, image: Tensor) -> Tensor:
        """Latents."""
        latent: Tensor = self.model.encode(image).latent
        return latent


def _statistics(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the normalized latents, as `_each_patch` lays them out."""
    deviation = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
    return model.bn.running_mean.reshape(-1, 1, 2, 1, 2), deviation.reshape(-1, 1, 2, 1, 2)


def _each_patch(latent: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of latents [B, C, H, W] as patches of 2 x 2, [B, C, H / 2, 2, W / 2, 2]."""
    batch, channels, height, width = latent.shape
    return change(latent.reshape(batch, channels, height // 2, 2, width // 2, 2)).reshape(latent.shape)


#: class of a component -> its graphs by their roles
GRAPHS: dict[str, dict[str, type[PartGraph]]] = {
    "CLIPTextModel": {"": ClipGraph},
    "CLIPTextModelWithProjection": {"": ProjectedClipGraph},
    "T5EncoderModel": {"": T5Graph},
    "Qwen3Model": {"": LanguageModelGraph},
    "Qwen3ForCausalLM": {"": LanguageModelGraph},
    "Qwen2_5_VLForConditionalGeneration": {"": LanguageModelGraph},
    "Gemma2Model": {"": LanguageModelGraph},
    "AutoencoderKL": {"decoder": DecoderGraph, "encoder": EncoderGraph},
    "AutoencoderKLFlux2": {"decoder": NormalizedDecoderGraph, "encoder": NormalizedEncoderGraph},
    "AutoencoderDC": {"decoder": DecoderGraph, "encoder": DCEncoderGraph},
    "AutoencoderKLQwenImage": {"decoder": DecoderGraph, "encoder": EncoderGraph},
}

#: class of a language model that has a head for words, or a vision tower -> the class of its layers
_LAYERS = {"Qwen3ForCausalLM": "Qwen3Model", "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLTextModel"}


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
    """

    component: str
    role: str
    class_name: str
    config: Mapping[str, Any]
    act_dtype: str
    tokens: int

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
        return self.graph.outputs(full_config(self.class_name, self.config), self.tokens)

    @property
    def wrapped(self) -> str:
        """Attribute of what `wrap` returns that holds the module itself."""
        return "model"

    @property
    def module_class(self) -> Any:
        """The class of what the graph computes: the component's, or that of its layers."""
        return need(self.graph.library, self.graph.library, _LAYERS.get(self.class_name, self.class_name))

    @property
    def module_config(self) -> Any:
        """The config of a `module_class`."""
        config = full_config(self.class_name, self.config)
        return config.get_text_config() if self.class_name in _LAYERS else config

    def build(self) -> nn.Module:
        """What the graph computes, on the CPU, with its class's random weights from torch's generator."""
        cls, config = self.module_class, self.module_config
        module: nn.Module = cls.from_config(config) if self.graph.library == "diffusers" else cls(config)
        return nn.Module.to(module, self.torch_dtype)  # diffusers' own `to` warns of modules that stay in f32

    def wrap(self, module: Any) -> nn.Module:
        """`module` as the graph, in eval mode and without gradients; its attention is written out, see above."""
        if self.graph.library == "transformers":
            module.set_attn_implementation("eager")
        elif has_frames(module.config):
            to_one_frame(module)
        else:
            write_out_attention(module)
        return self.graph(module).eval().requires_grad_(False)

    def example_inputs(self, seed: int = 0, **sizes: int) -> tuple[Tensor, ...]:
        """Ones in the order of `inputs`, to trace with: only their sizes count."""
        return tuple(torch.ones(io.shape(sizes), dtype=io.torch_dtype(self.torch_dtype)) for io in self.inputs)


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
