"""Python's garbage collector, paused while millions of objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect no garbage in the context, as while large libraries are imported or a model is traced.

    The collector looks at all objects again whenever their number has grown: a quarter of the time that importing
    torch, diffusers and transformers takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
