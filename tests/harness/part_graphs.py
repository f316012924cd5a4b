"""Graphs of a pipeline's parts in torch, as what runs them for stand-ins."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from svdq_trt.build.sizes import Sizes
from svdq_trt.models.part_modules import TextEncoder
from svdq_trt.models.parts import Part, full_config

SIZES = Sizes({"batch": (1, 1, 3), "height": (32, 64, 128), "width": (32, 64, 96), "tokens": (12, 12, 12)})


def part(class_name: str, config: dict[str, Any], role: str = "", dtype: str = "float32") -> Part:
    return Part("vae" if role else "text_encoder", role, class_name, config, dtype, 12)


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids of texts that end early, with the last id behind them."""
    value = torch.randint(1, 58, (batch, length), generator=torch.Generator().manual_seed(seed))
    for row in range(batch):
        value[row, 3 + row :] = 59
    return value


class Direct:
    """A part's graph as a runner that takes at most two rows."""

    def __init__(self, one: Part, module: torch.nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.module = module or one.build().eval().requires_grad_(False)
        self.graph, self.outputs = one.wrap(copy.deepcopy(self.module)), one.outputs
        profiles = SIZES.tensors(one.inputs, one.torch_dtype)
        self.inputs: list[Any] = [SimpleNamespace(name=p.name, dtype=p.dtype, max=(2, *p.max[1:])) for p in profiles]
        self.ran: list[tuple[int, ...]] = []  # shapes

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert all(len(value) <= 2 for value in inputs.values())
        self.ran += [tuple(value.shape) for value in inputs.values()]
        found = self.graph(**inputs)
        return {io.name: v for io, v in zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True)}


def encoder(
    one: Part, dtype: torch.dtype = torch.float32, module: Any = None, states: tuple[int, ...] = ()
) -> tuple[TextEncoder, Any]:
    """A stand-in for a text encoder, by a pipeline that reads these states, and the module."""
    runner = Direct(one, module)
    config = full_config(one.class_name, one.config)
    return TextEncoder(runner, "text_encoder", one.class_name, config, dtype, states), runner.module


def saved(class_name: str, config: dict[str, Any], folder: Path) -> Any:
    """A text encoder as transformers has it, saved in a pipeline's folder."""
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, class_name)
    whole = cls(cls.config_class(**config)).eval()
    whole.save_pretrained(folder / "text_encoder")
    return whole
