"""The calls that a diffusers pipeline makes of its denoiser, recorded without any weights.

The pipeline is diffusers' own class. In the place of its denoiser it has a `_Stand`, which has the denoiser's
configuration and returns noise; text encoders are absent, and their results are given as prompt embeddings.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.base.errors import UnsupportedError, first_line

#: text of each embedding is as long as these sizes say, in the order of the pipeline's parameters
_TEXTS = ("tokens", "tokens2")
_STEPS = 8
#: dtypes of masks of text, in torch's words
MASKS = ("int64", "bool", "bfloat16")
#: switches of pipelines that have prompts rewritten
_REWRITING = ("enable_prompt_rewrite", "use_pe", "prompt_upsampling")
#: how pipelines of videos call the number of frames
_FRAMES = ("num_frames", "frames", "video_length")
#: parameters of pipelines that have nothing to do with text
_NOT_TEXT = ("negative", "image", "ip_adapter")


@dataclass(frozen=True)
class PipelineParts:
    """A pipeline to be put together: all that is needed of a diffusers folder, or of a denoiser alone.

    Attributes:
        pipeline: name of its class in diffusers. component: name of its denoiser, "transformer" or "unet".
        settings: what its constructor takes besides components. parts: component -> (class in diffusers,
            configuration), of the scheduler and of the autoencoder, where there is one.
    """

    pipeline: str
    component: str
    settings: Mapping[str, Any]
    parts: Mapping[str, tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Texts:
    """The prompt embeddings with which a pipeline runs.

    Attributes:
        widths: features of each, by the name of the pipeline's parameter. mask: dtype of masks, one of MASKS.
    """

    widths: Mapping[str, int]
    mask: str


class CallError(UnsupportedError):
    """A pipeline that cannot be run without its text encoders."""


class _EnoughError(Exception):
    """The wanted call has been made."""


class _Stand(nn.Module):
    """Stands where the pipeline has its denoiser; keeps the arguments of one call and ends the run.

    Attributes:
        call: the arguments by name, once it was made.
    """

    def __init__(self, cls: type[nn.Module], config: Any, dtype: torch.dtype, step: int) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, dtype, torch.device("cpu")
        self.is_cache_enabled = False
        self._signature, self._wanted = inspect.signature(cls.forward), step
        self.call: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config", {})
        if name in config:
            return config[name]
        raise AttributeError(f"it reads '{name}' of the denoiser, which is not in its config.json")

    def cache_context(self, name: str, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        """Context in which pipelines make a call."""
        return contextlib.nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Noise, in the shape of the latents, until the wanted step."""
        bound = self._signature.bind(self, *args, **kwargs).arguments
        call = {name: value for name, value in list(bound.items())[1:] if name != "return_dict"}
        if self._wanted == 0:
            self.call = call
            raise _EnoughError
        self._wanted -= 1
        return (torch.randn_like(next(value for value in call.values() if isinstance(value, Tensor))),)


class _Shell:
    """An autoencoder of which a pipeline reads the configuration; no module, so that nothing asks for its device."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def own_class(name: Any, where: str) -> type[Any]:
    """Diffusers' class of that name: no other code runs, whatever a file says.

    Raises:
        UnsupportedError: none of diffusers' models, schedulers and pipelines.
    """
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    bases = (diffusers.ModelMixin, diffusers.SchedulerMixin, diffusers.DiffusionPipeline)
    if not isinstance(found, type) or not issubclass(found, bases) or not found.__module__.startswith("diffusers."):
        raise UnsupportedError(where, repr(name)[:60], "a class of diffusers")
    return found


def record(
    cls: type[nn.Module],
    config: Mapping[str, Any],
    parts: PipelineParts,
    texts: Texts,
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    noise: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The arguments, by name, of one call that the pipeline makes of its denoiser.

    Args:
        cls, config: the denoiser's class and its configuration.
        sizes: batch, height, ... dtype: of the denoiser. noise: 1 is the first step, 0 the last. seed: of all values.

    Raises:
        CallError: the pipeline fails, or asks for more than prompt embeddings.
    """
    step = round((1 - noise) * (_STEPS - 1))
    stand = _Stand(cls, config, dtype, step)
    made = own_class(parts.pipeline, "pipeline")
    known = inspect.signature(made.__init__).parameters
    components: dict[str, Any] = {name: None for name, p in known.items() if p.default is p.empty and name != "self"}
    components |= {name: _part(*part) for name, part in parts.parts.items()} | dict(parts.settings)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            pipe = made(**components | {parts.component: stand})
            pipe.set_progress_bar_config(disable=True)
            with contextlib.suppress(_EnoughError):
                pipe(**_arguments(pipe, texts, sizes, dtype))
    except Exception as error:  # whatever a pipeline stumbles over
        reason = first_line(error)
        raise CallError(
            parts.pipeline, f"cannot run on prompt embeddings ({reason})", "a pipeline that does"
        ) from error
    if stand.call is None:
        raise CallError(parts.pipeline, f"makes fewer than {step + 1} calls of its denoiser", "a diffusion pipeline")
    return stand.call


def text_parameters(pipeline: str) -> tuple[str, ...]:
    """The parameters of a pipeline's call that take prompt embeddings, masks of them left out.

    Raises:
        CallError: none: its text encoders must run.
    """
    known = inspect.signature(own_class(pipeline, "pipeline").__call__).parameters
    found = tuple(name for name in known if "embeds" in name and "mask" not in name and not _is_other(name))
    if not found:
        raise CallError(pipeline, "takes no prompt embeddings", "a pipeline that does", "Its text encoders must run.")
    return found


def frames_parameter(pipeline: str) -> inspect.Parameter | None:
    """The parameter of a pipeline's call that is the number of frames; None for one that makes images."""
    known = inspect.signature(own_class(pipeline, "pipeline").__call__).parameters
    return next((known[name] for name in _FRAMES if name in known), None)


def is_pooled(parameter: str) -> bool:
    """Whether an embedding has one row per prompt."""
    return "pooled" in parameter


def pipeline_of(cls: type[nn.Module]) -> tuple[str, str]:
    """The pipeline that makes images or videos of text with a denoiser of this class, and the denoiser's name in it.

    Raises:
        CallError: none in diffusers, or UNets', whose class does not say which.
    """
    found = []
    for name, made in _pipelines():
        parameters = inspect.signature(made.__init__).parameters
        call = inspect.signature(made.__call__).parameters
        for component in ("transformer", "unet"):
            if component in parameters and cls.__name__ in _names(parameters[component].annotation):
                asked = [p for p in ("image", "control_image", "mask_image", "video") if p in call]
                found.append((not any("prompt_embeds" in p for p in call), len(asked), len(name), name, component))
    if not found:
        raise CallError(cls.__name__, "no pipeline in diffusers has it", "a folder of a whole pipeline")
    pipeline, component = min(found)[3:]
    if component == "unet":
        raise CallError(cls.__name__, "a UNet, which each pipeline calls otherwise", "a folder of a whole pipeline")
    return pipeline, component


def scheduler_of(pipeline: str) -> str:
    """The class of the scheduler that a pipeline asks for: of a choice the first; DDIM, where it takes any."""
    known = inspect.signature(own_class(pipeline, "pipeline").__init__).parameters
    return next(iter(re.findall(r"\w+Scheduler\b", str(known.get("scheduler")))), "DDIMScheduler")


# ---- inside ------------------------------------------------------------------------------------------------------


def _pipelines() -> Iterator[tuple[str, Any]]:
    import diffusers.pipelines

    for info in pkgutil.iter_modules(diffusers.pipelines.__path__):
        if info.ispkg:
            package = importlib.import_module(f"diffusers.pipelines.{info.name}")
            for name in getattr(package, "_import_structure", {}).values():
                for each in name:
                    with contextlib.suppress(UnsupportedError):  # one whose libraries are not installed
                        if each.endswith("Pipeline"):
                            yield each, own_class(each, "pipeline")


def _names(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _is_other(name: str) -> bool:
    return any(word in name for word in _NOT_TEXT)


def _part(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler, or the shell of an autoencoder."""
    cls: Any = own_class(name, "component")
    if not issubclass(cls, nn.Module):
        return cls.from_config(dict(config))
    with torch.device("meta"):
        return _Shell(cls.from_config(dict(config)))


def _arguments(pipe: Any, texts: Texts, sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a pipeline's call: embeddings of all texts, sizes, and no guidance, which doubles the batch."""
    known = inspect.signature(pipe.__call__).parameters
    asked: dict[str, Any] = {"output_type": "latent", "num_inference_steps": _STEPS, "guidance_scale": 1.0}
    asked |= {"height": sizes["height"], "width": sizes["width"]} | dict.fromkeys(_FRAMES, sizes["frames"])
    asked |= {"use_resolution_binning": False, "true_cfg_scale": 1.0}
    asked |= dict.fromkeys(_REWRITING, False)
    lengths = iter(_TEXTS)
    length, batch = sizes["tokens"], sizes["batch"]
    for name in (name for name in known if not _is_other(name)):
        if name in texts.widths:
            rows = () if is_pooled(name) else (length := sizes[next(lengths)],)
            value: Any = torch.randn(batch, *rows, texts.widths[name], dtype=dtype)
            asked[name] = list(value) if "list" in str(known[name].annotation).lower() else value
        elif name == "attention_mask" or ("mask" in name and ("prompt" in name or "embeds" in name)):
            asked[name] = torch.ones(batch, length, dtype=getattr(torch, texts.mask))
    return {name: value for name, value in asked.items() if name in known}
