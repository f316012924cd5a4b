#!/usr/bin/env bash
# diffusers 0.42.1 (Flux2Pipeline), transformers 5.24.0 (Mistral3), torch 2.13.0 (CPU, random weights)
#
# Expected: `encode_prompt` gives the same embeddings, up to roundings, whichever of transformers' attention implementations the text
#   encoder has; "sdpa" and "eager" are two ways to compute one thing.
# What happens: FLUX.2 pads texts in front, up to 512 tokens. A padding token sees none, and the implementations differ there: "sdpa" gives
#   it zeros, "eager" the mean of all values, as its mask is a large number that is added to every score alike. The pipeline gives the
#   denoiser no mask, so it reads all 512 states, most of them padding. States of the prompt's own tokens agree.
# Why it matters: a short prompt's picture depends on the attention implementation, hence on what is installed and on how an encoder is
#   exported. Whoever writes attention out, as exporters do, gets other pictures than diffusers with its default.
source "$(dirname "$0")/common.sh"
install diffusers==0.42.1 transformers==5.24.0 torch==2.13.0 numpy==2.4.6
run_python <<'PY'
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from seen import seen
from transformers import LlamaTokenizer, Mistral3Config, Mistral3ForConditionalGeneration

LENGTH = 16
words = ["<unk>", "<s>", "</s>", "<pad>", SYSTEM_MESSAGE, *"fox"]
template = "<s>{% for message in messages %}{{ message.content[0].text }}{% endfor %}"
tokenizer = LlamaTokenizer(
    vocab={word: i for i, word in enumerate(words)},
    merges=[],
    pad_token="<pad>",
    extra_special_tokens=[SYSTEM_MESSAGE],
    add_prefix_space=False,
    chat_template=template,
)
text = {"model_type": "mistral", "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
text |= {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": None}
vision = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
config = Mistral3Config(text_config=text, vision_config=vision | {"num_attention_heads": 2, "image_size": 56})
torch.manual_seed(0)
encoder = Mistral3ForConditionalGeneration(config).eval()
pipe = Flux2Pipeline(None, None, encoder, tokenizer, None)

found = {}
for implementation in ("sdpa", "eager"):
    encoder.set_attn_implementation(implementation)
    with torch.no_grad():
        found[implementation], _ = pipe.encode_prompt(
            "fox", device="cpu", max_sequence_length=LENGTH, text_encoder_out_layers=(1, 2, 3)
        )
own = 5  # tokens of the text: <s>, the message, f, o, x
error = (found["sdpa"] - found["eager"])[0].norm(dim=1) / found["sdpa"][0].norm(dim=1)
seen("states given to the denoiser", found["sdpa"].shape[1], LENGTH)
seen("of the states of the text, the error is below 1e-5", bool((error[-own:] < 1e-5).all()), True)
seen("of the padding's states, it is above 0.1", bool((error[:-own] > 0.1).all()), True)
PY
