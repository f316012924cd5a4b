"""Options of a build, and that the commands and the code of docs/lora.md are real."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from svdq_trt.base.errors import UsageError
from svdq_trt.build.config import BuildConfig, LoraOption
from svdq_trt.cli import parse

DOC = (Path(__file__).resolve().parents[3] / "docs" / "lora.md").read_text()


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("/x/a.safetensors:0", "/x/a.safetensors", 0.0),
        ("x:y/a.safetensors", "x:y/a.safetensors", 1.0),
        ("x:y/a.safetensors:2e-1", "x:y/a.safetensors", 0.2),
    ],
)
def test_path_and_strength(text, path, strength):
    assert LoraOption.parse(text) == LoraOption(Path(path), strength)


def config(**options):
    return BuildConfig("sdxl-tiny", (89,), Path("out"), random_weights=0, **options)


def test_refused_before_any_work(tmp_path):
    good = tmp_path / "a.safetensors"
    good.write_bytes(b"x")
    assert config(loras=(LoraOption(good, 0.5),), lora_slots=32).to_json()["loras"] == [
        {"path": str(good), "strength": 0.5}
    ]
    for lora, text in (
        (LoraOption(tmp_path / "b.safetensors"), "no such file"),
        (LoraOption(tmp_path), "PATH"),
        (LoraOption(good, float("inf")), "strength inf"),
    ):
        with pytest.raises(UsageError, match=text):
            config(loras=(lora,))
    for slots in (8, -16, 1040):
        with pytest.raises(UsageError, match=f"--lora-slots: {slots}, want a multiple of 16 from 0 to 1024"):
            config(lora_slots=slots)


def test_documented_commands_parse():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", DOC, re.S)).replace("\\\n", "")
    lines = [line for line in blocks.splitlines() if line]
    for line in lines:
        assert line.startswith("python build_engines.py ")
        parse(["build", *line.split()[2:]])
    assert len(lines) >= 2


def test_documented_calls_exist():
    """Every call on the session in the document's Python has those parameters, on both sessions."""
    from svdq_trt.runtime import OnnxSession, Session

    (block,) = re.findall(r"```python\n(.*?)```", DOC, re.S)
    calls = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert len(calls) >= 6
    for call in calls:
        method = getattr(Session, call.func.attr)
        inspect.signature(method).bind(None, *call.args, **{k.arg: k.value for k in call.keywords})
    for name in ("set_lora", "prepare_lora"):
        assert inspect.signature(getattr(OnnxSession, name)) == inspect.signature(getattr(Session, name))
