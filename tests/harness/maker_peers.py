"""cache-dit's and ModelOpt's own quantizers on the CPU, where both ask for a GPU: their files as they write them."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import FP4_MAX, FP8_MAX
from svdq_trt.contract.numerics import E4M3, round_e2m1
from svdq_trt.models import ModelSpec

SEED = 0


def cache_dit(spec: ModelSpec, quant_type: str, folder: Path) -> nn.Module:
    """Quantize without data by cache-dit, into `folder`; the model with its modules."""
    from cache_dit.quantization.backend import QuantizeBackend

    with patch.object(QuantizeBackend, "is_supported", lambda *_, **__: True):  # it asks for its CUDA extension
        from cache_dit.quantization.config import QuantizeConfig
        from cache_dit.quantization.svdquant.ptq import quantize_svdq_dq

        config = QuantizeConfig(
            quant_type=quant_type,
            serialize_to=str(folder / f"{quant_type}.safetensors"),
            exclude_layers=["embed", "proj_out", "time_emb"],
            regional_quantize=False,
        )
        module: nn.Module = quantize_svdq_dq(load(spec, random_seed=SEED), config)
    return module


def modelopt(spec: ModelSpec, folder: Path, rank: int, plain: list[str]) -> None:
    """Quantize by ModelOpt's SVDQuant, with its own choice of layers, and export; `plain`: patterns without SVD."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization import tensor_quant

    config = copy.deepcopy(mtq.NVFP4_SVDQUANT_DEFAULT_CFG)
    config["algorithm"] = {"method": "svdquant", "lowrank": rank} | ({"skip_layers": plain} if plain else {})
    inputs = dict(zip((io.name for io in spec.inputs), spec.example_inputs(1, 64, 64, seed=1), strict=True))

    def calibrate(model: nn.Module) -> None:
        with torch.no_grad():
            model(**spec.family.arguments(inputs), return_dict=False)

    with patch.object(tensor_quant, "dynamic_block_quantize_op", _fake_nvfp4):  # it has that for CUDA alone
        export_hf_checkpoint(mtq.quantize(load(spec, random_seed=SEED), config, calibrate), export_dir=str(folder))


def _fake_nvfp4(x: Tensor, block: int, amax: Tensor, *_: int) -> Tensor:
    """What the kernel computes: e2m1 codes under e4m3 scales of blocks and one scale of the tensor."""
    groups = x.float().reshape(-1, block)
    whole = amax.float().amax() / FP4_MAX / FP8_MAX
    scale = (groups.abs().amax(-1, keepdim=True) / FP4_MAX / whole).clamp(max=FP8_MAX).to(E4M3).float() * whole
    scale = torch.where(scale == 0, 1.0, scale)
    return (round_e2m1(groups / scale) * scale).reshape(x.shape).to(x.dtype)
