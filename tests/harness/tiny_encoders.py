"""Small text encoders with random weights, and their tokenizers over single letters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.harness.language_models import PIXTRAL

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def tokenizer(folder: Path) -> tuple[Any, int]:
    """CLIP's tokenizer over single letters, and how many words it knows."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77), len(words)


def t5_tokenizer(folder: Path) -> tuple[Any, int]:
    """T5's tokenizer over single letters, saved in `folder`, and how many words it knows."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0).save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder), len(pieces)


def t5(folder: Path, **config: Any) -> tuple[Any, Any]:
    """The letters' T5 tokenizer, and an encoder for it, of 96 channels unless `config` says otherwise."""
    from transformers import T5Config, T5EncoderModel

    words, size = t5_tokenizer(folder)
    own = {"vocab_size": size, "d_model": 96, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    encoder = T5EncoderModel(T5Config(**own | {"feed_forward_proj": "gated-gelu"} | config))
    return words, encoder.eval()


def qwen_tokenizer(folder: Path, *more: str) -> tuple[Any, int]:
    """Qwen's tokenizer over single letters, saved in `folder`, with a chat template; how many words it knows.

    Args:
        more: words that are tokens wherever they stand.
    """
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    words = [*special, *LETTERS, "\u0120"]  # the last one is a space
    template = (
        "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}{% if not enable_thinking %}<|im_end|>{% endif %}"
    )
    vocab = {word: i for i, word in enumerate(words)}
    Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=special[1:], chat_template=template).save_pretrained(
        folder
    )
    return Qwen2Tokenizer.from_pretrained(folder), len(words)


def gemma_tokenizer(folder: Path) -> tuple[Any, int]:
    """Gemma's tokenizer over three letters, saved in `folder`, and how many words it knows.

    What is between such letters is one unknown word, so that SANA's instruction is short.
    """
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"fox"]
    vocab = {word: i for i, word in enumerate(words)}
    GemmaTokenizer(vocab=vocab, add_bos_token=True).save_pretrained(folder)
    return GemmaTokenizer.from_pretrained(folder), len(words)


def qwen3(folder: Path, kind: str, channels: int = 96, layers: int = 3) -> tuple[Any, Any]:
    """The letters' tokenizer, and a language model for it, by its class."""
    import transformers

    words, size = qwen_tokenizer(folder)
    own: dict[str, Any] = {"vocab_size": size, "hidden_size": channels, "num_hidden_layers": layers, "head_dim": 32}
    own |= {"intermediate_size": 64}
    config = transformers.Qwen3Config(**own, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
    return words, getattr(transformers, kind)(config).eval()


def mistral_tokenizer(folder: Path) -> tuple[Any, int]:
    """Mistral's tokenizer over three letters, saved in `folder`, and how many words it knows.

    What is between such letters is one unknown word, and FLUX.2's message of a system one word.
    """
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import LlamaTokenizer

    special = ["<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", SYSTEM_MESSAGE]
    words = ["<unk>", "<s>", "</s>", *special, *"fox"]
    template = (
        "<s>{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content[0].text }}"
        "{% else %}[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
    )
    vocab, more = {word: i for i, word in enumerate(words)}, {"pad_token": "<pad>", "extra_special_tokens": special[1:]}
    LlamaTokenizer(vocab=vocab, merges=[], add_prefix_space=False, chat_template=template, **more).save_pretrained(
        folder
    )
    return LlamaTokenizer.from_pretrained(folder), len(words)


def mistral3(folder: Path, channels: int, layers: int) -> tuple[Any, Any]:
    """The tokenizer of `mistral_tokenizer`, and a model for it."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    words, size = mistral_tokenizer(folder)
    text = {"model_type": "mistral", "vocab_size": size, "hidden_size": channels, "intermediate_size": 64}
    text |= {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    config = Mistral3Config(text_config=text | {"sliding_window": None}, vision_config=PIXTRAL)
    return words, Mistral3ForConditionalGeneration(config).eval()


def clip_config(size: int, hidden: int, projection: int) -> Any:
    """A CLIP text encoder's config over `size` words."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=size,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def qwen_image_tokenizer(folder: Path) -> tuple[Any, int]:
    """Qwen's tokenizer, in which the message before QwenImagePipeline's prompts has 34 tokens; its number of words."""
    from diffusers import QwenImagePipeline

    pipe: Any = QwenImagePipeline(*[None] * 5)
    words = re.findall(r" ?[A-Za-z]{2,}|[\n,:]", pipe.prompt_template_encode)
    return qwen_tokenizer(folder, *sorted(set(words)))


def qwen2_5_vl(folder: Path) -> tuple[Any, Any]:
    """The tokenizer of `qwen_image_tokenizer`, and a model for it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words, size = qwen_image_tokenizer(folder)
    text: dict[str, Any] = {"vocab_size": size, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 4, 4]}}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 96,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return words, Qwen2_5_VLForConditionalGeneration(config).eval()
