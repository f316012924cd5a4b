"""Which parts make which kind of adapter, as one table."""

from __future__ import annotations

from collections.abc import Mapping

from svdq_trt.lora.changes import Change, Difference, LowRank
from svdq_trt.lora.products import Hadamard, Kronecker
from svdq_trt.lora.weighted import InputRotation, Replacement, Rotation

#: parts that every adapter of the kind has -> the kind; parts that it may have besides
_ADAPTERS: tuple[tuple[frozenset[str], type[Change], frozenset[str]], ...] = (
    (frozenset({"down", "up"}), LowRank, frozenset({"mid", "up_bias"})),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), Hadamard, frozenset({"hada_t1", "hada_t2"})),
    *(
        (frozenset({*one, *two}), Kronecker, frozenset({"lokr_t2"} if len(two) == 2 else ()))
        for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    (frozenset({"oft_blocks"}), Rotation, frozenset({"rescale"})),
    (frozenset({"oft_R"}), InputRotation, frozenset()),
    (frozenset({"diff"}), Difference, frozenset({"diff_b"})),
    (frozenset({"diff_b"}), Difference, frozenset()),
    (frozenset({"weight"}), Replacement, frozenset({"bias"})),
    (frozenset({"bias"}), Replacement, frozenset()),
)
_MAGNITUDES = frozenset({"dora_scale", "magnitude"})


def kind_of(parts: Mapping[str, str]) -> tuple[type[Change], bool] | str:
    """The kind of adapter that has these parts, and whether it is a DoRA of it; else why it is none."""
    have = frozenset(parts) - {"alpha"} - _MAGNITUDES
    magnitudes = _MAGNITUDES & parts.keys()
    for needed, kind, more in _ADAPTERS:
        if needed <= have <= needed | more:
            paired = ("hada_t1" in have) == ("hada_t2" in have)
            plain = issubclass(kind, LowRank | Hadamard | Kronecker) and "up_bias" not in have
            if not paired or len(magnitudes) > 1 or (magnitudes and not plain):
                break
            return kind, bool(magnitudes)
    if have <= {"down", "up", "mid", "up_bias"}:
        missing = [part for part in ("down", "up") if part not in have]
        if missing:
            return f"has no {missing[0]} factor"
    return f"parts that do not belong together ({', '.join(sorted(parts))})"
