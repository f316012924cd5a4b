"""Names of the engines that a run of bench_engine.py compares."""

import pytest
from engine_bench.variant import Variant

from svdq_trt.base.errors import UsageError


def test_a_name_says_format_size_limit_and_attention():
    assert Variant.parse("w4a8") == Variant("w4a8", (), "auto")
    assert Variant.parse("w4a8<2M+tensorrt-attention") == Variant("w4a8", ("<2M",), "tensorrt")
    assert Variant.parse("w4a8<2M~*.to_out.0~x") == Variant("w4a8", ("<2M", "*.to_out.0", "x"), "auto")
    sizes = {name: Variant.parse(name).head_sizes(90) for name in ("fp16", "w4a8", "w4a8+tensorrt-attention")}
    assert sizes == {"fp16": (), "w4a8": (64, 72, 128), "w4a8+tensorrt-attention": ()}
    assert Variant.parse("w4a8").head_sizes(89) == ()


@pytest.mark.parametrize("name", ["w4", "w4a8+tensorrt", "w4a8+own-attention", "w4a8+"])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match="--formats"):
        Variant.parse(name)
