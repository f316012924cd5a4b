"""PEFT's patterns: matched as Python's `re` does it in PEFT, without running what a file says."""

from __future__ import annotations

import random
import re
import time

import pytest

from svdq_trt.lora.peft_pattern import UnknownPatternError, matches

NAMES = [
    "proj_out",
    "single_transformer_blocks.0.proj_out",
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.11.attn.to_q",
    "transformer_blocks.1.ff.net.0.proj",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "a",
    "",
]
PATTERNS = [
    *("proj_out", "^proj_out", r"^proj_out$", "to_q", "attn.to_q", r"attn\.to_q", "o_q", "net.0.proj", ".*"),
    *(r"transformer_blocks\.\d+\.attn\.to_q", r".*\.to_[qkv]", r"(double|single_transformer)_blocks\.(\d+)\..*"),
    *(r"transformer_blocks\.(0|1)\.attn\.(to_q|to_k)", r"^transformer_blocks\.\d{1,1}\.attn\.to_q", r"\w+", r"\S+_out"),
    *(
        "(?:to_q|proj_out)",
        "[^.]+",
        "[a-z_]+",
        r"[\w.]*",
        "a?",
        "a|",
        "(a|b)*",
        "(a*)*",
        "^",
        "$",
        "to_q$",
        ".",
        "x*?proj_out",
    ),
    *(r"transformer_blocks\.1{2}\.attn\.to_q", r"\D*1\D*", "(to_q|^proj_out)"),
]


def in_peft(pattern, name):
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_does_in_peft(pattern):
    for name in NAMES:
        assert matches(pattern, name) == in_peft(pattern, name), name


def test_random_patterns():
    rng, tried = random.Random(0), 0
    parts = ["a", "b", ".", r"\.", r"\d", "[ab]", "[^b]", "(a|b)", "(ab|b)", "(?:a.b|)", "^", "$", "1"]
    for _ in range(3000):
        pattern = "".join(rng.choice(parts) + rng.choice(["", "", "", "*", "+", "?", "{1,2}"]) for _ in range(4))
        name = "".join(rng.choice("ab1.") for _ in range(rng.randrange(8)))
        try:
            want = in_peft(pattern, name)
        except re.error:
            continue
        try:
            assert matches(pattern, name) == want, (pattern, name)
            tried += 1
        except UnknownPatternError:
            assert re.search(r"[$^][*+?{]", pattern), pattern
    assert tried > 2000


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        "(?=a)",
        "(?i)a",
        r"\ba",
        "a++",
        "a**",
        "(a",
        "a)",
        "[a",
        "[b-a]",
        "{2}",
        "a{2,1}",
        "((a*)*)*",
        "x" * 300,
        "\\",
    ],
)
def test_what_is_not_understood_is_said(pattern):
    with pytest.raises(UnknownPatternError):
        matches(pattern, "a")


@pytest.mark.parametrize("pattern", ["(a|a)*b", "(a*)*b", "(a+)+b", ".*.*.*.*.*.*.*.*.*b", "((a|a)(a|a))*b"])
def test_no_pattern_takes_long(pattern):
    start = time.perf_counter()
    assert not matches(pattern, "a" * 200)
    assert time.perf_counter() - start < 2
