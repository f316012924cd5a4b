#!/usr/bin/env bash
# diffusers 0.42.1 (SanaPipeline, PRXPipeline), transformers 5.24.0, torch 2.13.0 (CPU, no weights)
#
# Expected: for two prompts and two pictures of each, `encode_prompt` returns embeddings and masks in one order: a, a, b, b.
# What happens: embeddings are a, a, b, b, masks a, b, a, b. Each prompt's second or first picture is made with the other prompt's
#   mask, so that the denoiser reads padding, or does not read the end of a text. Nothing is said, and one prompt alone is right.
# Why it matters: servers merge requests into one call. Whoever merges prompts of different lengths and asks for several pictures gets
#   other pictures than for each prompt alone.
source "$(dirname "$0")/common.sh"
install diffusers==0.42.1 transformers==5.24.0 torch==2.13.0 numpy==2.4.6
run_python <<'PY'
import inspect

import torch
from diffusers import PRXPipeline, SanaPipeline
from seen import seen

texts = torch.tensor([1.0, 2.0])[:, None, None].expand(2, 4, 8)  # prompt a is all ones, b all twos
masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])  # a is one token long, b two
for cls in (SanaPipeline, PRXPipeline):
    needed = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    pipe = cls(**dict.fromkeys(needed))
    given = {"prompt_embeds": texts, "prompt_attention_mask": masks, "num_images_per_prompt": 2}
    options = {"device": torch.device("cpu"), "do_classifier_free_guidance": False}
    found = pipe.encode_prompt(prompt=None, **given, **options)
    embeds = found[0][:, 0, 0].int().tolist()
    lengths = next(f for f in found[1:] if f is not None and f.ndim == 2).sum(1).tolist()
    seen(f"{cls.__name__}, prompts of the embeddings", embeds, [1, 1, 2, 2])
    seen(f"{cls.__name__}, prompts of the masks", lengths, [1, 2, 1, 2])
PY
