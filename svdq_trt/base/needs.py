"""What this code takes from libraries of which newer releases are accepted: looked up by name, missed in one sentence.

The releases that the tests ran with are in pyproject.toml's ranges at their lower end; an upper end is a guess.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.base.extras import EXTRAS, install

#: distribution -> a requirement that has all that is needed
TESTED = {"torch": "torch>=2.13,<2.15", "diffusers": "diffusers==0.42.*", "transformers": "transformers>=5,<6"}


def need(distribution: str, module: str, name: str) -> Any:
    """The object `name` in `module` of a library.

    Raises:
        UnsupportedError: the installed release has no such module or name in it, or it needs a library that is not
            installed: diffusers and transformers then have a class of that name which is good for nothing.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise lacking(distribution, f"{module}.{name}") from error
    if type(found).__name__ == "DummyObject":
        absent = (library for library in found._backends if importlib.util.find_spec(library) is None)
        missing = next(absent, found._backends[0])  # else a release that the other library does not take
        fix = install(missing) if missing in EXTRAS else f"pip install {missing}"
        got, want = f"no usable Python module {missing}", "it, which the class needs"
        raise UnsupportedError(f"{module}.{name}", got, want, fix)
    return found


def need_parameters(distribution: str, function: Callable[..., Any], names: tuple[str, ...]) -> None:
    """Raise UnsupportedError unless a library's function has these parameters."""
    found = inspect.signature(function).parameters
    if missing := next((name for name in names if name not in found), ""):
        raise lacking(distribution, f"parameter {missing} of {function.__module__}.{function.__qualname__}")


def lacking(distribution: str, what: str) -> UnsupportedError:
    """The error for a release without `what`."""
    release = f"{distribution} {importlib.metadata.version(distribution)}"
    return UnsupportedError(release, f"no {what}", "a release that has it", f"pip install '{TESTED[distribution]}'")
