"""CLIP's and T5's tokenizers, with a token for each word of the captions; other words fall apart into letters."""

from __future__ import annotations

import itertools
import json
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

END, LAST = "</w>", ("<|startoftext|>", "<|endoftext|>")  # of a word in CLIP's vocabulary; its last two tokens
CLIP_TOKENS, T5_TOKENS = 77, 16


def clip_tokenizer(words: Sequence[str]) -> Any:
    """CLIP's, whose merges make the words of letters."""
    from transformers import CLIPTokenizer

    merges = _merges(words)
    letters = [*string.ascii_lowercase, *(f"{c}{END}" for c in string.ascii_lowercase)]
    vocabulary = dict.fromkeys((*letters, *("".join(pair) for pair in merges), *LAST))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
        (Path(folder) / "merges.txt").write_text("\n".join(("#version: 0.2", *map(" ".join, merges), "")))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=CLIP_TOKENS)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of pieces to join, in order: those before a word's own leave it in pieces that its own complete."""
    found: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + END]
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            known = [pair for pair in pairs if pair in found]
            pair = min(known, key=found.__getitem__) if known else pairs[0]
            found.setdefault(pair, len(found))
            at = pairs.index(pair)
            pieces[at : at + 2] = ["".join(pair)]
    return list(found)


def t5_tokenizer(words: Sequence[str]) -> Any:
    """T5's, which prefers whole words."""
    from transformers import T5Tokenizer

    special = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces = [
        ("\u2581", -2.0),
        *((f"\u2581{word}", -1.0) for word in words),
        *((c, -10.0) for c in string.ascii_lowercase),
    ]
    with tempfile.TemporaryDirectory() as folder:
        T5Tokenizer(vocab=[*special, *pieces], extra_ids=0).save_pretrained(folder)
        return T5Tokenizer.from_pretrained(folder)
