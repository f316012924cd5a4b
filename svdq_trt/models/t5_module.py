"""T5's encoder of transformers, constructed as diffusers' classes are: of its config's values. Needs transformers."""

from __future__ import annotations

from transformers import T5Config, T5EncoderModel


class T5Encoder(T5EncoderModel):
    """T5EncoderModel; arguments as in its config.json, with T5Config's defaults."""

    def __init__(
        self,
        vocab_size: int = 32128,
        d_model: int = 512,
        d_kv: int = 64,
        d_ff: int = 2048,
        num_layers: int = 6,
        num_heads: int = 8,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        layer_norm_epsilon: float = 1e-6,
        feed_forward_proj: str = "relu",
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(T5Config(**given))
