"""What this code takes from libraries of which newer releases are accepted: looked up by name, missed in one sentence.

The releases that the tests ran with are in pyproject.toml's ranges at their lower end; an upper end is a guess.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

from svdq_trt.base.errors import UnsupportedError

#: distribution -> a requirement that has all that is needed
TESTED = {"torch": "torch>=2.13,<2.15", "diffusers": "diffusers==0.42.*", "transformers": "transformers>=5,<6"}


def need(distribution: str, module: str, name: str) -> Any:
    """The object `name` in `module` of a library.

    Raises:
        UnsupportedError: the installed release has no such module or name in it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise lacking(distribution, f"{module}.{name}") from error


def need_parameters(distribution: str, function: Callable[..., Any], names: tuple[str, ...]) -> None:
    """Raise UnsupportedError unless a library's function has these parameters."""
    found = inspect.signature(function).parameters
    if missing := next((name for name in names if name not in found), ""):
        raise lacking(distribution, f"parameter {missing} of {function.__module__}.{function.__qualname__}")


def lacking(distribution: str, what: str) -> UnsupportedError:
    """The error for a release without `what`."""
    release = f"{distribution} {importlib.metadata.version(distribution)}"
    return UnsupportedError(release, f"no {what}", "a release that has it", f"pip install '{TESTED[distribution]}'")
