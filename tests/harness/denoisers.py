"""Classes of diffusers that no file of models/ names, small: their configurations, and calls of them on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 64}
_AXES = (16, 24, 24)


def _r(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _ids(axes: int, *sizes: int) -> Tensor:
    """[L, axes]: 0, ..., row, column."""
    grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    return nn.functional.pad(torch.stack(grid, dim=-1).reshape(-1, len(sizes)), (axes - len(sizes), 0)).float()


def _flux(text: int, ids: int, **more: Any) -> Callable[[int, int], Call]:
    def call(rows: int, tokens: int) -> Call:
        return {
            "hidden_states": _r(2, 8 * rows, 16),
            "encoder_hidden_states": _r(2, tokens, text),
            "timestep": torch.tensor([0.3, 0.7]),
            "img_ids": _ids(ids, rows, 8),
            "txt_ids": _ids(ids, tokens),
            **more,
        }

    return call


def _z_image(rows: int, tokens: int) -> Call:
    return {
        "x": [_r(16, 1, 2 * rows, 16) for _ in range(2)],
        "t": torch.tensor([0.3, 0.7]),
        "cap_feats": [_r(tokens, 96) for _ in range(2)],
    }


def _qwen(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 8 * rows, 16),
        "encoder_hidden_states": _r(2, tokens, 96),
        "timestep": torch.tensor([0.3, 0.7]),
        "img_shapes": [[(1, rows, 8)]] * 2,
    }


def _wan(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, 3, 2 * rows, 16),
        "timestep": torch.tensor([300, 700]),
        "encoder_hidden_states": _r(2, tokens, 96),
    }


def _krea(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 8 * rows, 16),
        "encoder_hidden_states": _r(2, tokens, 3, 128),
        "timestep": torch.tensor([0.3, 0.7]),
        "position_ids": torch.cat((_ids(3, tokens), _ids(3, rows, 8))),
    }


def _aura(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 4, 2 * rows, 16),
        "encoder_hidden_states": _r(2, tokens, 96),
        "timestep": torch.tensor([0.3, 0.7]),
    }


def _cogview(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, 2 * rows, 16),
        "encoder_hidden_states": _r(2, tokens, 96),
        "timestep": torch.tensor([300, 700]),
        **{name: _r(2, 2) for name in ("original_size", "target_size", "crop_coords")},
    }


def _lumina(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, 2 * rows, 16),
        "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": _r(2, tokens, 96),
        "encoder_attention_mask": torch.ones(2, tokens, dtype=torch.bool),
    }


def _hunyuan(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, rows, 8),
        "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": _r(2, tokens, 96),
        "encoder_attention_mask": torch.ones(2, tokens),
    }


def _hidream(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, 2 * rows, 16),
        "timesteps": torch.tensor([300, 700]),
        "encoder_hidden_states_t5": _r(2, tokens, 96),
        "encoder_hidden_states_llama3": _r(2, 2, tokens, 96),
        "pooled_embeds": _r(2, 48),
    }


def _ernie(rows: int, tokens: int) -> Call:
    return {
        "hidden_states": _r(2, 16, rows, 8),
        "timestep": torch.tensor([300, 700]),
        "text_bth": _r(2, tokens, 96),
        "text_lens": torch.full((2,), tokens),
    }


def _ideogram(rows: int, tokens: int) -> Call:
    length = 8 * rows + tokens
    return {
        "hidden_states": _r(2, length, 16),
        "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": _r(2, length, 96),
        "position_ids": torch.cat((_ids(3, tokens), _ids(3, rows, 8))).expand(2, -1, -1),
        "segment_ids": torch.zeros(2, length, dtype=torch.long),
        "indicator": torch.cat((torch.ones(2, tokens), torch.zeros(2, 8 * rows)), dim=1).long(),
    }


_TWO = {"num_layers": 2, "num_single_layers": 2}
_FLUX = {"in_channels": 16, "joint_attention_dim": 96, **_HEADS, **_TWO}

#: class -> configuration, and a call for (rows of 8 patches, text tokens)
DENOISERS: dict[str, tuple[dict[str, Any], Callable[[int, int], Call]]] = {
    "Flux2Transformer2DModel": (
        {**_FLUX, "axes_dims_rope": (16, 16, 16, 16)},
        _flux(96, 4, guidance=torch.tensor([3.5, 3.5])),
    ),
    "ZImageTransformer2DModel": (
        {"dim": 384, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 6, "n_kv_heads": 6, "cap_feat_dim": 96}
        | {"axes_dims": list(_AXES)},
        _z_image,
    ),
    "QwenImageTransformer2DModel": (
        {"in_channels": 16, "num_layers": 2, "joint_attention_dim": 96, "axes_dims_rope": _AXES, **_HEADS},
        _qwen,
    ),
    "WanTransformer3DModel": (
        {"text_dim": 96, "freq_dim": 64, "ffn_dim": 256, "num_layers": 2, **_HEADS},
        _wan,
    ),
    "ChromaTransformer2DModel": (
        {**_FLUX, "axes_dims_rope": _AXES, "approximator_hidden_dim": 64, "approximator_layers": 2},
        _flux(96, 3),
    ),
    "LongCatImageTransformer2DModel": (
        {**_FLUX, "pooled_projection_dim": 48, "axes_dims_rope": list(_AXES)},
        _flux(96, 3),
    ),
    "Krea2Transformer2DModel": (
        {"in_channels": 16, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64}
        | {"num_key_value_heads": 2, "intermediate_size": 512, "text_hidden_dim": 128, "num_text_layers": 3}
        | {"text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 256}
        | {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": _AXES},
        _krea,
    ),
    "AuraFlowTransformer2DModel": (
        {"sample_size": 16, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "joint_attention_dim": 96}
        | {"caption_projection_dim": 128, "pos_embed_max_size": 1024, **_HEADS},
        _aura,
    ),
    "CogView4Transformer2DModel": (
        {"num_layers": 2, "text_embed_dim": 96, "time_embed_dim": 64, "condition_dim": 32, "rope_axes_dim": (32, 32)}
        | _HEADS,
        _cogview,
    ),
    "Lumina2Transformer2DModel": (
        {"hidden_size": 192, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"axes_dim_rope": (32, 32, 32), "cap_feat_dim": 96, "multiple_of": 64},
        _lumina,
    ),
    "HunyuanImageTransformer2DModel": (
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_refiner_layers": 1,
            "text_embed_dim": 96,
            "rope_axes_dim": (32, 32),
        }
        | _HEADS
        | _TWO,
        _hunyuan,
    ),
    "HiDreamImageTransformer2DModel": (
        {"patch_size": 2, "in_channels": 16, "caption_channels": [96, 96], "text_emb_dim": 48, "llama_layers": [0, 1]}
        | {"axes_dims_rope": (32, 16, 16)}
        | _HEADS
        | _TWO
        | {"num_layers": 1, "num_single_layers": 1},
        _hidream,
    ),
    "ErnieImageTransformer2DModel": (
        {"hidden_size": 128, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 256, "in_channels": 16}
        | {"out_channels": 16, "text_in_dim": 96, "rope_axes_dim": _AXES},
        _ernie,
    ),
    "Ideogram4Transformer2DModel": (
        {"in_channels": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64}
        | {"intermediate_size": 256, "adaln_dim": 64, "llm_features_dim": 96, "mrope_section": (12, 10, 10)},
        _ideogram,
    ),
}

#: class -> the line at which it asks for a value, in the middle of its forward
UNTRACEABLE = {"Lumina2Transformer2DModel": "attention_mask.sum", "HiDreamImageTransformer2DModel": "bincount"}
TRACEABLE = sorted(DENOISERS.keys() - UNTRACEABLE.keys())


def build(name: str, device: str = "meta") -> nn.Module:
    """The small model of a class, in f32."""
    import diffusers

    with torch.device(device):
        module: nn.Module = getattr(diffusers, name)(**DENOISERS[name][0])
    return module.eval().requires_grad_(False)


def call(name: str, rows: int, tokens: int, device: str = "meta") -> Call:
    """Keyword arguments of its forward for 8 · rows patches and so many text tokens."""
    from torch.utils._pytree import tree_map

    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, DENOISERS[name][1](rows, tokens))
