"""Nunchaku's own Python classes, built on the CPU: its package with nothing in place of the CUDA extension.

They come with nunchaku's source, which no registry has: PYTHONPATH=<a checkout of nunchaku>.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn


class _Nothing(types.ModuleType):
    """A module of which every name can be imported, and nothing called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _module(name: str) -> Any:
    if importlib.util.find_spec("nunchaku") is None:
        pytest.skip("nunchaku's source is not on PYTHONPATH")
    for stub in ("nunchaku._C", "nunchaku._C.ops"):
        sys.modules.setdefault(stub, _Nothing(stub))
    return importlib.import_module(name)


#: model -> module and class of the loader that nunchaku's documents name for it
LOADERS = {
    "flux1-tiny": ("nunchaku.models.transformers.transformer_flux_v2", "NunchakuFluxTransformer2DModelV2"),
    "sdxl-tiny": ("nunchaku.models.unets.unet_sdxl", "NunchakuSDXLUNet2DConditionModel"),
}


def load(model: str, path: Path, fmt: str, dtype: torch.dtype) -> nn.Module:
    """The model as nunchaku's own `from_pretrained` makes it of a file: every tensor in its place, none left."""
    module_name, name = LOADERS[model]
    module = _module(module_name)
    with patch.object(module, "get_precision", lambda: "fp4" if fmt == "nvfp4" else "int4"):
        loaded: nn.Module = getattr(module, name).from_pretrained(path, torch_dtype=dtype, device="cpu")
    return loaded
