"""Optional dependencies: the extra of pip that brings a module which running and serving engines does not need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from svdq_trt.base.errors import UnsupportedError

#: module -> extra of pyproject.toml
EXTRAS = {
    "diffusers": "build",
    "huggingface_hub": "build",
    "jinja2": "build",
    "matplotlib": "build",
    "onnxscript": "build",
    "polygraphy": "build",
    "safetensors": "build",
    "torch": "build",
    "transformers": "prompts",
    "pycuda": "runtime",
    "tritonclient": "triton",
}


def install(module: str) -> str:
    """The command that brings a module of EXTRAS to the installed svdq-trt."""
    return f'pip install "svdq-trt[{EXTRAS[module]}]"'


@contextmanager
def required_by(what: str) -> Iterator[None]:
    """Say in one sentence that `what` needs a module that is not installed.

    Raises:
        UnsupportedError: in place of ModuleNotFoundError for a module of EXTRAS.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise UnsupportedError(
            what, f"no Python module {module}", f"an installation with the extra '{EXTRAS[module]}'", install(module)
        ) from error
