"""Original (BFL) names of a diffusers FluxTransformer2DModel's layers, as kohya's trainer and ComfyUI use them.

The original fuses q, k, v (and a single block's MLP input) into one linear, and the last modulation has its two
halves swapped: a name therefore stands for row ranges of several of diffusers' layers.
tests/cpu/lora/test_names.py checks the table against diffusers' own converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

#: pattern of diffusers' layer -> the original's; a block's number stays
_ONE_TO_ONE = (
    (r"x_embedder", "img_in"),
    (r"context_embedder", "txt_in"),
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"proj_out", "final_layer.linear"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.lin"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
)

#: pattern of the first of diffusers' layers -> (the original's name, all of diffusers' leaves in its row order)
_FUSED = (
    (r"(transformer_blocks\.(\d+)\.attn\.)to_q", r"double_blocks.\2.img_attn.qkv", ("to_q", "to_k", "to_v")),
    (
        r"(transformer_blocks\.(\d+)\.attn\.)add_q_proj",
        r"double_blocks.\2.txt_attn.qkv",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
    ),
    (
        r"(single_transformer_blocks\.(\d+)\.)attn\.to_q",
        r"single_blocks.\2.linear1",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ),
)

#: as _FUSED, of XLabs' attention processors; a linear alone is a group of one
_XLABS = (
    (_FUSED[0][0], r"double_blocks.\2.processor.qkv_lora1", _FUSED[0][2]),
    (_FUSED[1][0], r"double_blocks.\2.processor.qkv_lora2", _FUSED[1][2]),
    (r"(transformer_blocks\.(\d+)\.attn\.)to_out\.0", r"double_blocks.\2.processor.proj_lora1", ("to_out.0",)),
    (r"(transformer_blocks\.(\d+)\.attn\.)to_add_out", r"double_blocks.\2.processor.proj_lora2", ("to_add_out",)),
    (_FUSED[2][0], r"single_blocks.\2.processor.qkv_lora", _FUSED[2][2][:3]),
    (r"(single_transformer_blocks\.(\d+)\.)proj_out", r"single_blocks.\2.processor.proj_lora", ("proj_out",)),
)

_SWAPPED = ("norm_out.linear", "final_layer.adaLN_modulation.1")  # diffusers: scale, shift; original: shift, scale

#: original name -> its parts: (diffusers layer, first row there, first row here, rows)
Parts = tuple[tuple[str, int, int, int], ...]


def flux_original_names(rows: Mapping[str, int]) -> Iterator[tuple[str, Parts]]:
    """Every original name with the rows it stands for.

    Args:
        rows: N of each of diffusers' layers by name.
    """
    for layer, n in rows.items():
        for pattern, original in _ONE_TO_ONE:
            match = re.fullmatch(pattern, layer)
            if match:
                yield match.expand(original), ((layer, 0, 0, n),)
    yield from _groups(rows, _FUSED)
    layer, original = _SWAPPED
    if layer in rows:
        half = rows[layer] // 2
        yield original, ((layer, half, 0, half), (layer, 0, half, half))


def xlabs_names(rows: Mapping[str, int]) -> Iterator[tuple[str, Parts]]:
    """Every name of XLabs' LoRAs, as `flux_original_names`."""
    yield from _groups(rows, _XLABS)


def _groups(rows: Mapping[str, int], table: Sequence[tuple[str, str, tuple[str, ...]]]) -> Iterator[tuple[str, Parts]]:
    for layer in rows:
        for pattern, original, leaves in table:
            match = re.fullmatch(pattern, layer)
            names = [match[1] + leaf for leaf in leaves] if match else []
            if match and all(name in rows for name in names):
                starts = [sum(rows[name] for name in names[:i]) for i in range(len(names))]
                parts = tuple((name, 0, at, rows[name]) for name, at in zip(names, starts, strict=True))
                yield match.expand(original), parts
