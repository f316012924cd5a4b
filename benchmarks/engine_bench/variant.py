"""What an engine of a run is, from its name: ``w4a8<2M``, ``w4a8~*.to_out.0``, ``w4a8+tensorrt-attention``."""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.base.errors import UsageError
from svdq_trt.contract.archs import ATTENTION_CHOICES, resolve_attention
from svdq_trt.contract.formats import FORMATS

PLAIN = ("fp16", "diffusers")  # not quantized


@dataclass(frozen=True)
class Variant:
    """One engine.

    Attributes:
        format: of its linears, or one of PLAIN. skip: patterns of --skip. attention: the choice of --attention.
    """

    format: str
    skip: tuple[str, ...]
    attention: str

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Parse FORMAT[<SIZE][~PATTERN]...[+CHOICE-attention]; what --skip names by size or by pattern is in 16 bit.

        Raises:
            UsageError: another format or choice.
        """
        linears, plus, attention = text.partition("+")
        linears, *patterns = linears.split("~")
        precision, less, limit = linears.partition("<")
        if precision not in (*PLAIN, *FORMATS):
            raise UsageError("--formats", f"'{precision}'", f"one of {', '.join((*PLAIN, *FORMATS))}")
        choice = attention.removesuffix("-attention") if plus else "auto"
        if choice not in ATTENTION_CHOICES or (plus and not attention.endswith("-attention")):
            known = ", ".join(f"+{c}-attention" for c in ATTENTION_CHOICES)
            raise UsageError("--formats", f"'{text}'", f"one of {known} behind a format")
        return cls(precision, (*((less + limit,) if less else ()), *patterns), choice)

    def head_sizes(self, arch: int) -> tuple[int, ...]:
        """Head sizes of the attentions that are the plugin's: none in a model that is not quantized."""
        return () if self.format in PLAIN else resolve_attention(self.attention, arch)
