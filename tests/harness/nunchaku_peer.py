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
from torch import Tensor, nn

from svdq_trt.contract.numerics import E4M3, e2m1_values, unpack_nibbles
from svdq_trt.interop.packing import FRAGMENTS


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


def dequantized(linear: Any) -> Tensor:
    """[N, K] f64: the weight that one of its SVDQW4A4Linear computes with."""
    n, k, r = linear.out_features, linear.in_features, linear.rank
    codes = unpack_nibbles(FRAGMENTS.codes.unpack(linear.qweight, (n, k // 2)))
    if linear.precision == "nvfp4":
        scale = FRAGMENTS.micro.unpack(linear.wscales.view(torch.int8), (k // 64, n, 4)).view(E4M3)
        steps = scale.double().transpose(0, 1).flatten(1) * float(linear.wtscale)
        steps = steps * FRAGMENTS.channels.unpack(linear.wcscales, (n,)).double()[:, None]
        values = e2m1_values(codes).double()
    else:
        steps = FRAGMENTS.scales.unpack(linear.wscales, (k // 64, n)).T.double()
        values = ((codes ^ 8).to(torch.int8) - 8).double()
    residual = values * steps.repeat_interleave(linear.group_size, 1)
    smooth = FRAGMENTS.channels.unpack(linear.smooth_factor, (k,)).double()
    up = FRAGMENTS.up.unpack(linear.proj_up, (n, r)).double()
    return residual / smooth + up @ FRAGMENTS.down.unpack(linear.proj_down, (r, k)).double()
