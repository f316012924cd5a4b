"""Language models of transformers, constructed as diffusers' classes are: of their config's values. Needs transformers.

Angles of rotations keep their f32, as transformers keeps them whatever the model's dtype.
"""

from __future__ import annotations

from typing import Any

import transformers


def _of_values(layers: Any) -> Any:
    """The class `layers`, whose arguments are what its config has."""

    def construct(self: Any, **config: Any) -> None:
        layers.__init__(self, layers.config_class(**config))

    own = {"__init__": construct, "__module__": __name__, "_keep_in_fp32_modules_strict": ["rotary_emb"]}
    return type(layers.__name__, (layers,), own)


Gemma2Model = _of_values(transformers.Gemma2Model)
MistralModel = _of_values(transformers.MistralModel)
Qwen2_5_VLTextModel = _of_values(transformers.Qwen2_5_VLTextModel)
Qwen3Model = _of_values(transformers.Qwen3Model)
