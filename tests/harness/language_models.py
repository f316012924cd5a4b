"""Small configurations of the language models that pipelines have as text encoders: three layers of 32 channels."""

from __future__ import annotations

from typing import Any

QWEN3: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
#: wide enough for 4 bits
WIDE = QWEN3 | {"hidden_size": 64, "intermediate_size": 128}
#: of its layers the first sees all before it, the others four tokens with their own
WINDOWED = QWEN3 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
#: every other layer sees four tokens; weights so large, and a cap so low, that the cap bends the scores
GEMMA2 = QWEN3 | {"sliding_window": 4, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}
GEMMA2 |= {"initializer_range": 0.2}
#: a vision tower
PIXTRAL: dict[str, Any] = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "image_size": 56}
PIXTRAL |= {"num_hidden_layers": 1, "num_attention_heads": 2}
#: as published, beside the values of a vision tower
MISTRAL3: dict[str, Any] = {
    "tie_word_embeddings": False,
    "text_config": {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None, **QWEN3},
    "vision_config": PIXTRAL,
}

#: name of a case -> class and configuration
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Model", QWEN3),
    "qwen3-windowed": ("Qwen3Model", WINDOWED),
    "gemma2": ("Gemma2Model", GEMMA2),
    "mistral": ("Mistral3ForConditionalGeneration", MISTRAL3),
}

#: as published, the language model's values beside the vision tower's; sections of M-RoPE hold a head's eight pairs
QWEN2_5_VL: dict[str, Any] = {
    **{name: value for name, value in QWEN3.items() if name != "head_dim"},
    "bos_token_id": 58,
    "eos_token_id": 59,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},
    "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32},
}
