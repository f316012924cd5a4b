"""Stand-ins for a pipeline's text encoders and its autoencoder: called like the module, they run engines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svdq_trt.base.needs import need
from svdq_trt.models.autoencoder_config import autoencoder_scale, patch_side
from svdq_trt.models.stand_in import Runs, StandIn
from svdq_trt.models.text_graphs import from_the_first
from svdq_trt.models.tiles import by_tiles


class TextEncoder(StandIn):
    """Called like a text encoder of transformers: CLIP's, T5's, or a language model whose states are read.

    Attributes:
        dtype: of the outputs, in which pipelines go on.

    Args:
        states: that the engine of a language model gives, see Part.states.
    """

    def __init__(
        self, runner: Runs, name: str, class_name: str, config: Any, dtype: torch.dtype, states: Sequence[int] = ()
    ) -> None:
        super().__init__(runner, name, config)
        self.dtype = dtype
        layers = config.get_text_config().num_hidden_layers if states else 0
        self._states, self._count = from_the_first(states, layers), layers + 1
        module, output = {
            "CLIPTextModel": ("transformers.modeling_outputs", "BaseModelOutputWithPooling"),
            "CLIPTextModelWithProjection": ("transformers.models.clip.modeling_clip", "CLIPTextModelOutput"),
            "T5EncoderModel": ("transformers.modeling_outputs", "BaseModelOutput"),
            "Qwen3Model": ("transformers.modeling_outputs", "BaseModelOutputWithPast"),
            "Gemma2Model": ("transformers.modeling_outputs", "BaseModelOutputWithPast"),
            "Qwen3ForCausalLM": ("transformers.modeling_outputs", "CausalLMOutputWithPast"),
            "Qwen2_5_VLForConditionalGeneration": ("transformers.modeling_outputs", "CausalLMOutputWithPast"),
            "Mistral3ForConditionalGeneration": ("transformers.modeling_outputs", "CausalLMOutputWithPast"),
        }[class_name]
        self._output_class = need("transformers", module, output)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        use_cache: bool = False,
    ) -> Any:
        """Encode token ids [B, T]; same return type as the module's, without what a vision tower would add.

        Where the engine has a mask, a T below the engine's runs with masked tokens behind it.

        Raises:
            UnsupportedError: a mask or all layers' states, where the engine has none; a cache.
        """
        if use_cache:
            raise self.refuse("use_cache", "True", "False: the engine keeps no keys and values")
        inputs, tokens = {"input_ids": input_ids}, input_ids.shape[1]
        if masked := "attention_mask" in self._dtypes:
            inputs["attention_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            inputs = {name: self._padded(value) for name, value in inputs.items()}
        elif attention_mask is not None:
            raise self.refuse("attention_mask", "given", "nothing: the engine's inputs are input_ids")
        runs = self._run_rows({name: value.to(self._dtypes[name]) for name, value in inputs.items()})
        found = {name: torch.cat([r[name] for r in runs], dim=-3 if name == "hidden_states" else 0) for name in runs[0]}
        if masked:
            found = {name: states[..., :tokens, :] for name, states in found.items()}
        outputs: dict[str, Any] = {n: value.to(input_ids.device, self.dtype) for n, value in found.items()}
        if "hidden_states" in outputs:
            states = self._by_index(outputs["hidden_states"])
            outputs["hidden_states"] = states if output_hidden_states else None
            has_last = not self._states or self._count - 1 in self._states
            if has_last and "last_hidden_state" in self._output_class.__dataclass_fields__:
                outputs.setdefault("last_hidden_state", states[-1])
            elif not output_hidden_states:
                raise self.refuse("output_hidden_states", "False", "True: the engine gives states, and no words")
        elif output_hidden_states:
            raise self.refuse("output_hidden_states", "True", "False: the engine gives the last state")
        result = self._output_class(**outputs)
        return result if return_dict else result.to_tuple()

    def _by_index(self, states: Tensor) -> Sequence[Tensor]:
        """States as transformers' hidden_states has them, of which those that the engine does not give are refused.

        One that was built without `states` gives all.
        """
        if not self._states or len(states) == self._count:
            return tuple(states)
        refuse = functools.partial(self.refuse, "hidden_states")
        if len(states) != len(self._states):
            want = f"{len(self._states)} or all {self._count}"
            raise refuse(f"{len(states)} states", want, "Build it again: svdq-trt build")
        return _SomeStates(dict(zip(self._states, states, strict=True)), self._count, refuse)

    def _padded(self, value: Tensor) -> Tensor:
        """Ids or a mask [B, T] with zeros behind them, up to the engine's T."""
        runner: Any = self.runner
        most = next(profile.max[1] for profile in runner.inputs if profile.name == "input_ids")
        return F.pad(value, (0, max(most - value.shape[1], 0)))


class _SomeStates(Sequence[Tensor]):
    """Some of so many states, by their indices from the first; indexed as a tuple of them all would be."""

    def __init__(self, given: Mapping[int, Tensor], count: int, refuse: Callable[[str, str], Exception]) -> None:
        self._given, self._count, self._refuse = given, count, refuse

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        place = range(self._count)[index]
        if isinstance(place, range):
            return tuple(self[one] for one in place)
        if place not in self._given:
            raise self._refuse(f"{index} is read", f"one of {', '.join(map(str, self._given))}, which the engine gives")
        return self._given[place]


class Autoencoder(StandIn):
    """Called like diffusers' AutoencoderKL or AutoencoderKLFlux2; `runner` decodes.

    FLUX.2's latents are normalized, and its statistics 0 and 1: NormalizedDecoderGraph says why.

    Args:
        open_encoder: opens what encodes, when an image is first encoded: a picture from text needs none.
    """

    def __init__(self, runner: Runs, name: str, config: Any, open_encoder: Callable[[], Runs]) -> None:
        super().__init__(runner, name, config)
        self._encoder = functools.cache(open_encoder)
        if (patch := patch_side(config)) > 1:  # the engines' latents are normalized already
            channels = config.latent_channels * patch**2
            variance = torch.ones(channels) - config.batch_norm_eps
            self.bn = SimpleNamespace(running_mean=torch.zeros(channels), running_var=variance)

    @property
    def dtype(self) -> torch.dtype:
        """The engines' dtype."""
        found: torch.dtype = self._dtypes["latent"]
        return found

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents [B, C, H, W] to pixels; `generator` has no use, as in the module."""
        image = self._half("latent", "image", z, self.runner).to(z.device)
        if not return_dict:
            return (image,)
        return need("diffusers", "diffusers.models.autoencoders.vae", "DecoderOutput")(sample=image)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pixels [B, 3, H, W] to the distribution of the latents."""
        moments = self._half("image", "moments", x, self._encoder())
        gaussian = need("diffusers", "diffusers.models.autoencoders.vae", "DiagonalGaussianDistribution")
        posterior = gaussian(moments.to(x.device))
        if not return_dict:
            return (posterior,)
        return need("diffusers", "diffusers.models.modeling_outputs", "AutoencoderKLOutput")(latent_dist=posterior)

    def _half(self, name: str, output: str, x: Tensor, runner: Any) -> Tensor:
        """The output of the engine whose input is `name`; by tiles, where `x` is larger than the engine takes.

        Raises:
            UnsupportedError: latents that are no whole patches.
        """
        side = patch_side(self.config)
        if name == "latent" and any(size % side for size in x.shape[2:]):
            raise self.refuse(name, " x ".join(map(str, x.shape[2:])), f"multiples of {side}")

        def run(tile: Tensor) -> Tensor:
            return torch.cat([found[output] for found in self._run_rows({name: tile.to(self.dtype)}, runner)])

        most = next(profile.max[2:] for profile in runner.inputs if profile.name == name)
        if all(size <= limit for size, limit in zip(x.shape[2:], most, strict=True)):
            return run(x)
        step = side * (1 if name == "latent" else autoencoder_scale(self.config))
        return by_tiles(run, x, most, step)


class DCAutoencoder(Autoencoder):
    """Called like diffusers' AutoencoderDC, which encodes to latents, not to a distribution of them."""

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pixels [B, 3, H, W] to latents."""
        latent = self._half("image", "latent", x, self._encoder()).to(x.device)
        if not return_dict:
            return (latent,)
        return need("diffusers", "diffusers.models.autoencoders.vae", "EncoderOutput")(latent=latent)


class FrameAutoencoder(Autoencoder):
    """Called like diffusers' AutoencoderKLQwenImage, with one frame [B, C, 1, H, W]; its engines take pictures."""

    def _half(self, name: str, output: str, x: Tensor, runner: Any) -> Tensor:
        if x.shape[2] != 1:
            raise self.refuse(name, f"{x.shape[2]} frames", "one: the engine's are of pictures")
        return super()._half(name, output, x[:, :, 0], runner)[:, :, None]


#: class of a component -> its stand-in
AUTOENCODERS: dict[str, type[Autoencoder]] = {
    "AutoencoderKL": Autoencoder,
    "AutoencoderKLFlux2": Autoencoder,
    "AutoencoderDC": DCAutoencoder,
    "AutoencoderKLQwenImage": FrameAutoencoder,
}
