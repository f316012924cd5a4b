"""contract.h is what tools/gen_contract.py makes of svdq_trt/spec."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from svdq_trt.spec import ops

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generator():
    spec = importlib.util.spec_from_file_location("gen_contract", ROOT / "tools" / "gen_contract.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contract_header_is_up_to_date(generator):
    assert generator.main(["--check"]) == 0, "run python tools/gen_contract.py"


def test_check_stale_header_fails_and_write_mends_it(generator, monkeypatch, tmp_path, capsys):
    header = tmp_path / "contract.h"
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "HEADER", header)
    assert generator.main(["--check"]) == 1
    assert "contract.h: stale, want" in capsys.readouterr().err
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0
    header.write_text(header.read_text().replace("kKMultiple = 64", "kKMultiple = 32"))
    assert generator.main(["--check"]) == 1


def test_contract_header_lists_every_op_and_input_in_order(generator):
    text = generator.render()
    assert re.findall(r'^    \{"(SVDQLinear\w+)", ', text, re.M) == list(ops.OPS)
    names = re.search(r"kInputNames\{\s*(.*?)\}", text, re.S)[1]
    assert re.findall(r'"(\w+)"', names) == [t.name for t in ops.INPUTS]
