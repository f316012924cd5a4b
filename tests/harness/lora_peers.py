"""What PEFT, diffusers and LyCORIS make of an adapter: files that they write, and the weights that they merge."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svdq_trt.checkpoint import load
from svdq_trt.models import ModelSpec, get_model

TARGETS = ["to_q", "to_k", "ff.net.2", "proj_out"]  # of flux1-tiny: fused, of two nodes, and kept in 16 bit
Weights = dict[str, Tensor]


def quiet() -> None:
    """Without the libraries' advice to those who train."""
    logging.getLogger("peft").setLevel(logging.ERROR)
    import diffusers

    diffusers.utils.logging.set_verbosity_error()


@functools.cache
def _base(name: str) -> nn.Module:
    return load(get_model(name), random_seed=0).float()


def model(spec: ModelSpec) -> nn.Module:
    """The 16-bit model in f32, with weights that no adapter has touched."""
    return copy.deepcopy(_base(spec.name))


def peft_model(spec: ModelSpec, config: Any) -> nn.Module:
    """A model with an adapter of random factors, as after training."""
    from peft import inject_adapter_in_model

    quiet()
    module = inject_adapter_in_model(config, model(spec))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
            elif any(part in name for part in ("lora_", "hada_", "lokr_", "oft_", "modules_to_save")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return module


def save_by_diffusers(module: Any, folder: Path) -> Path:
    """The file of `save_lora_adapter`: names and configuration without a component."""
    module.save_lora_adapter(folder)
    return folder / "pytorch_lora_weights.safetensors"


def save_by_pipeline(module: Any, folder: Path) -> Path:
    """The file of a pipeline's `save_lora_weights`: names and configuration with "transformer."."""
    from diffusers import FluxPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(module)
    FluxPipeline.save_lora_weights(folder, layers, **_collate_lora_metadata({"transformer": module}))
    return folder / "pytorch_lora_weights.safetensors"


def save_by_peft(module: Any, folder: Path) -> Path:
    """PEFT's own folder: adapter_model.safetensors and adapter_config.json."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir()
    tensors = {f"base_model.model.{k}": v.contiguous() for k, v in get_peft_model_state_dict(module).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    module.peft_config["default"].save_pretrained(folder)
    return folder / "adapter_model.safetensors"


def merged(module: nn.Module, strength: float = 1.0) -> Weights:
    """The model's parameters with its adapter merged at a strength: PEFT's own arithmetic."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    found: Weights = {}
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, ModulesToSaveWrapper):
                own = layer.modules_to_save["default"]
                found |= {f"{name}.{k}": v.detach() for k, v in own.named_parameters()}
            elif isinstance(layer, BaseTunerLayer):
                tuned: Any = layer  # what kinds of adapters have, their base class has not
                tuned.scale_layer(strength)
                tuned.merge()
                found |= {f"{name}.{k}": v.detach() for k, v in tuned.get_base_layer().named_parameters()}
    return found


def loaded_by_diffusers(spec: ModelSpec, path: Path, strength: float = 1.0) -> Weights:
    """The model's parameters as diffusers' pipelines load the file, fused."""
    from diffusers import FluxPipeline, StableDiffusionXLPipeline

    quiet()
    module: Any = model(spec)
    alphas = None
    if spec.class_path.endswith("UNet2DConditionModel"):
        sdxl, prefix, more = StableDiffusionXLPipeline, "unet", {"unet_config": module.config}
        tensors, alphas, metadata = sdxl.lora_state_dict(str(path), return_lora_metadata=True, **more)
    else:
        flux, prefix = FluxPipeline, "transformer"
        tensors, alphas, metadata = flux.lora_state_dict(str(path), return_alphas=True, return_lora_metadata=True)
    module.load_lora_adapter(tensors, prefix=prefix, network_alphas=alphas, metadata=metadata, adapter_name="default")
    return merged(module, strength)


def lycoris(
    spec: ModelSpec,
    kinds: Mapping[str, tuple[Any, Mapping[str, Any]]],
    names: Mapping[str, str],
    path: Path,
    strength: float,
) -> Weights:
    """Write a LyCORIS file and return the weights that LyCORIS merges; at a strength, that part of the change.

    Args:
        kinds: layer -> (module class, its arguments). names: layer -> as the file spells it, without "lora_unet_".
    """
    base = model(spec)
    tensors: Weights = {}
    found: Weights = {}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer, (kind, options) in kinds.items():
            own = kind(names[layer], base.get_submodule(layer), **options)
            for name, parameter in own.named_parameters():
                if name in ("dora_scale", "rescale"):
                    parameter *= 1 + 0.1 * torch.rand(parameter.shape, generator=generator)
                elif not name.startswith("org_"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if hasattr(own, "scalar"):
                own.scalar.fill_(1.0)
            state = own.custom_state_dict() or own.state_dict()
            spelled = f"lora_unet_{names[layer].replace('.', '_')}"
            tensors |= {f"{spelled}.{k}": v.detach() for k, v in state.items() if not k.startswith("org_")}
            weight = base.get_submodule(layer).weight
            if hasattr(own, "get_weight"):  # get_merged_weight of LoHa and LoKr multiplies with alpha / r twice
                changed = weight + own.get_weight(weight.shape)
                changed = own.apply_weight_decompose(changed) if own.wd else changed
            else:
                changed = own.get_merged_weight()[0]
            found[f"{layer}.weight"] = weight + (changed - weight) * strength
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    return found
