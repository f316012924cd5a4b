"""contract.h is what tools/gen_contract.py makes of svdq_trt/contract."""

from __future__ import annotations

import re
from pathlib import Path

from svdq_trt.contract import attention, ops
from tools import gen_contract

ROOT = Path(__file__).resolve().parents[2]


def test_contract_header_is_up_to_date():
    assert gen_contract.main(["--check"]) == 0, "run python tools/gen_contract.py"


def test_check_stale_header_fails_and_write_mends_it(monkeypatch, tmp_path, capsys):
    header = tmp_path / "contract.h"
    monkeypatch.setattr(gen_contract, "ROOT", tmp_path)
    monkeypatch.setattr(gen_contract, "HEADER", header)
    assert gen_contract.main(["--check"]) == 1
    assert "contract.h: stale, want" in capsys.readouterr().err
    assert gen_contract.main([]) == 0
    assert gen_contract.main(["--check"]) == 0
    header.write_text(header.read_text().replace("kKMultiple = 64", "kKMultiple = 32"))
    assert gen_contract.main(["--check"]) == 1


def test_contract_header_lists_every_op_and_input_in_order():
    text = gen_contract.render()
    assert re.findall(r'^    \{"(SVDQ\w+)", ', text, re.M) == [*ops.OPS, *attention.ATTENTION_OPS]
    rows = re.search(r"kInputs\{\{\n(.*?)\n\}\}", text, re.S)[1].splitlines()
    assert [re.match(r'    \{"(\w+)", Dtype::k(\w+), ', row).groups() for row in rows] == [
        (t.name, {"ACT": "Act", "INT8": "Int8", "F32": "F32", "WSCALE": "Wscale"}[t.dtype.name]) for t in ops.INPUTS
    ]
    words = {"Leading": "...", "N": "N", "K": "K", "R": "R", "Cols": "C"}
    for row, t in zip(rows, ops.INPUTS, strict=True):
        dims = [(words[size], int(divisor)) for size, divisor in re.findall(r"\{Size::k(\w+), (\d+)\}", row)]
        assert dims == [(d.size.value, d.divisor) for d in t.dims]


def test_contract_header_has_what_each_format_says_of_wscale_and_unsigned_codes():
    rows = re.findall(
        r'^    \{"(\w+)", SVDQ_FORMAT_\w+, \d+, Dtype::k(\w+), (\d), (\w+), \d+\}', gen_contract.render(), re.M
    )
    assert rows == [
        ("int4", "Act", "1", "true"),
        ("w4a8", "Int8", "1", "false"),
        ("nvfp4", "Int8", "4", "false"),
        ("w4a16", "Act", "1", "false"),
    ]


def test_contract_header_has_the_function_of_each_activation_and_the_rows_of_a_feature():
    table = re.search(r"kActivations\{\{\n(.*?)\n\}\}", gen_contract.render(), re.S)[1]
    assert re.findall(r"\{SVDQ_ACT_(\w+), (\d)\},  // (\w+)", table) == [
        *((name, "1", name) for name in ("NONE", "GELU", "GELU_TANH", "SILU")),
        ("GELU", "2", "GEGLU"),
        ("SILU", "2", "SWIGLU"),
    ]


def test_ops_of_two_linears_have_the_inputs_and_attributes_of_both():
    activations = ("Gelu", "GeluTanh", "Geglu", "Swiglu")
    assert list(ops.MLP_OPS) == [f"SVDQMlp{f}{a}" for f in ("Int4", "NVFP4") for a in activations]
    linear, mlp = ops.OPS["SVDQLinearInt4Gelu"], ops.OPS["SVDQMlpInt4Gelu"]
    assert linear.inputs == ops.INPUTS and linear.attributes == ops.ATTRIBUTES
    own = [t.name for t in ops.INPUTS[1:]]
    assert [t.name for t in mlp.inputs] == ["x", *(f"fc1_{n}" for n in own), *(f"fc2_{n}" for n in own)]
    assert [a.name for a in mlp.attributes] == [
        "group_size",
        "fc1_act_unsigned",
        "fc1_act_shift",
        "fc2_act_unsigned",
        "fc2_act_shift",
    ]
    assert ops.linear_names(ops.mlp_name("a.0", "a.2")) == ["a.0", "a.2"] and ops.linear_names("a.0#2") == ["a.0#2"]


def test_which_dtype_wscale_has_stands_once():
    """The table says it, TensorSpec.dtype_of resolves it, gen_contract writes it for C++; nobody else asks."""
    folders = ("svdq_trt", "export", "tools", "benchmarks", "plugins", "examples")
    files = [
        p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
    ]
    says = {str(p.relative_to(ROOT)) for p in files if re.search(r"wscale_(is_act_)?dtype", p.read_text())}
    assert says == {
        "svdq_trt/contract/formats.py",
        "svdq_trt/contract/ops.py",
        "tools/gen_contract.py",
        "plugins/include/svdq/contract.h",
    }
