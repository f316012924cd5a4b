"""``attach`` runs a diffusers pipeline on an engine instead of its UNet or transformer; ``detach`` undoes that."""

from __future__ import annotations

from typing import TypeVar

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.checkpoint.config_check import check_module
from svdq_trt.models import get_model
from svdq_trt.models.denoiser import Denoiser, attached, component_of
from svdq_trt.runtime.protocol import Runner

Pipe = TypeVar("Pipe")


def attach(pipe: Pipe, session: Runner, *, keep_original: bool = True) -> Pipe:
    """Run `pipe` on `session`: its UNet or transformer is replaced, everything else stays as it is.

        pipe = StableDiffusionXLPipeline.from_pretrained(path, unet=None, dtype=torch.float16).to("cuda")
        attach(pipe, Session("engines/sdxl-sm_89"))
        image = pipe("a photo of a fox").images[0]

    Works with every pipeline class that calls the module as diffusers' own do: text to image, image to image,
    inpainting. A pipeline with two transformers takes an engine for each, one call after the other.

    Args:
        pipe: a diffusers pipeline. Its component may be None (``unet=None``), which saves loading those weights.
        session: a Session or an OnnxSession, opened from an engine folder; close it yourself, after `detach`.
        keep_original: keep the torch module, and so its memory, for `detach`.

    Returns:
        `pipe`.

    Raises:
        UnsupportedError: `pipe` has no such component, or a session without a manifest.
        ArtifactError: the engine was built from a model of another structure.
    """
    if not session.model:
        raise UnsupportedError("session", "no manifest", "one opened from an engine folder")
    spec = get_model(session.model)
    name = component_of(pipe, spec)
    current = getattr(pipe, name)
    original = current.original if isinstance(current, Denoiser) else current
    if original is not None:
        check_module(spec, original, f"pipe.{name}")
    config = None if original is None else original.config
    denoiser = Denoiser(session, spec, name, config, original if keep_original else None)
    setattr(pipe, name, denoiser.eval())
    return pipe


def detach(pipe: Pipe) -> Pipe:
    """Put the torch modules back; returns `pipe`.

    Raises:
        UnsupportedError: no engine is attached, or a torch module was not kept.
    """
    engines = attached(pipe)
    if not engines:
        raise UnsupportedError(type(pipe).__name__, "no engine in it", "a pipeline with an attached engine")
    for name, engine in engines.items():
        if engine.original is None:
            got, fix = "the torch module was not kept", f"Set pipe.{name} to a module yourself."
            raise UnsupportedError(f"pipe.{name}", got, "one to put back", fix)
        setattr(pipe, name, engine.original)
    return pipe
