"""The arguments of a denoiser's call as a form with places for inputs: lists, tuples, numbers and tensors, either way.

A form is JSON. A tensor is {"input": NAME}; a list of one tensor per image is {"images": NAME}; {"list": [...]},
{"tuple": [...]} and {"dict": {...}} hold others; {"value": V} is what is the same in every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.errors import UnsupportedError

Form = dict[str, Any]


def form_of(name: str, value: Any, batch: int) -> Form:
    """The form of an argument called `name`, in a call of `batch` images.

    Raises:
        UnsupportedError: a value of a kind that has no form.
    """
    if isinstance(value, Tensor):
        return {"input": name}
    if isinstance(value, list) and len(value) == batch and all(isinstance(v, Tensor) for v in value):
        return {"images": name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [form_of(f"{name}_{i}", v, batch) for i, v in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): form_of(str(key), v, batch) for key, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise UnsupportedError(name, f"a {type(value).__name__} among the arguments", "tensors, lists and numbers")


def fill(form: Form, inputs: Mapping[str, Tensor]) -> Any:
    """The argument of a form, with the inputs at their places."""
    ((kind, held),) = form.items()
    if kind == "input":
        return inputs[held]
    if kind == "images":
        return list(inputs[held].unbind(0))
    if kind == "dict":
        return {key: fill(each, inputs) for key, each in held.items()}
    if kind == "value":
        return held
    filled = [fill(each, inputs) for each in held]
    return filled if kind == "list" else tuple(filled)


def take(form: Form, value: Any) -> dict[str, Any] | None:
    """The inputs, by name, in an argument; None where it does not have the form."""
    ((kind, held),) = form.items()
    if kind == "input":
        return {held: value}
    if kind == "images":
        same = isinstance(value, list | tuple) and len({v.shape for v in value if isinstance(v, Tensor)}) == 1
        return {held: torch.stack(list(value))} if same else None
    if kind == "value":
        return {} if value is None or value == held else None
    if kind == "dict":
        parts = [(each, (value or {}).get(key)) for key, each in held.items()]
    elif isinstance(value, list | tuple) and len(value) == len(held):
        parts = list(zip(held, value, strict=True))
    else:
        return None
    found: dict[str, Any] = {}
    for each, part in parts:
        taken = take(each, part)
        if taken is None:
            return None
        found |= taken
    return found


def inputs_of(form: Form) -> tuple[str, ...]:
    """The names of a form's inputs, in order."""
    ((kind, held),) = form.items()
    if kind in ("input", "images"):
        return (held,)
    each = held.values() if kind == "dict" else held if kind in ("list", "tuple") else ()
    return tuple(name for part in each for name in inputs_of(part))
