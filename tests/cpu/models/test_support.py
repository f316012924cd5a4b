"""The support table shows what has been done, from the data that the builder uses."""

import pytest

from svdq_trt.base.errors import UsageError
from svdq_trt.build.summary import support
from svdq_trt.build.work import require_memory_for_check
from svdq_trt.cli import main
from svdq_trt.models import MODELS, get_model


def test_every_model_and_arch_is_in_the_table(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for name in MODELS:
        assert f" {name} " in text and f"{name}: " in text
    assert "sm_120 nvfp4" in text and "sm_89 int4" in text


def test_states():
    assert support(get_model("sdxl"), 89) == "built"
    assert support(get_model("sdxl-turbo"), 89) == "twin"
    assert support(get_model("flux1-tiny"), 120) == "CI"
    assert support(get_model("flux1-tiny"), 90) == "-"
    assert support(get_model("t5-xxl"), 89) == "twin"
    assert [support(get_model("wan-tiny"), arch) for arch in (89, 120)] == ["CI", "-"]


def test_check_of_a_model_beyond_this_machine_is_refused_before_any_work():
    with pytest.raises(UsageError, match=r"flux1-dev in 16 bit takes some 75 GB to run.*24 GB.*--no-check"):
        require_memory_for_check(get_model("flux1-dev"), 24 * 10**9)
    require_memory_for_check(get_model("sdxl"), 24 * 10**9)
