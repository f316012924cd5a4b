"""diffusers' own Nunchaku Lite: `from_pretrained` of a folder on the CPU, with nothing in place of the kernels."""

from __future__ import annotations

import sys
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from svdq_trt.interop.packing import FRAGMENTS, unpack_awq
from svdq_trt.models import ModelSpec
from tests.harness.packed import w4a4_weight


def load(spec: ModelSpec, folder: Path) -> nn.Module:
    """The model as diffusers makes it of a Nunchaku Lite folder: every key as its modules have it, none left over."""
    import diffusers.quantizers.auto
    import diffusers.utils
    from diffusers.quantizers.nunchaku import nunchaku_quantizer

    kernels: Any = types.ModuleType("kernels")
    kernels.get_kernel = lambda *args, **kwargs: types.SimpleNamespace(ops=None)
    model: Any = spec.model_class()
    with ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, {"kernels": kernels}))
        for name, value in (("is_kernels_available", lambda: True), ("is_kernels_version", lambda *_: False)):
            stack.enter_context(patch.object(diffusers.utils, name, value))
        stack.enter_context(patch("diffusers.utils.constants.DIFFUSERS_TRUST_REMOTE_KERNELS", True))
        checks = patch.object(nunchaku_quantizer.NunchakuLiteQuantizer, "validate_environment", lambda *_, **__: None)
        stack.enter_context(checks)  # which asks for a GPU
        loaded: nn.Module = model.from_pretrained(folder, torch_dtype=spec.torch_dtype)
    return loaded


def weight(linear: Any) -> Tensor:
    """[N, K] f64: the weight that one of its modules computes with, by the formats its kernels have."""
    if type(linear).__name__ == "AWQW4A16Linear":
        codes = unpack_awq(linear.qweight).double().unflatten(1, (-1, 64))
        scale, zero = linear.wscales.double().T, linear.wzeros.double().T
        return (codes * scale[..., None] + zero[..., None]).flatten(1)
    return w4a4_weight(linear)


def bias(linear: Any) -> Tensor | None:
    """[N] f64, in the model's order."""
    if linear.bias is None or type(linear).__name__ == "AWQW4A16Linear":
        return None if linear.bias is None else linear.bias.double()
    return FRAGMENTS.channels.unpack(linear.bias, (linear.out_features,)).double()
