"""The rules of plugins/ that a machine can check."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
SOURCES = sorted(p for p in PLUGINS.rglob("*") if p.suffix in (".cu", ".cuh", ".cpp", ".h"))


def test_inline_assembly_is_in_ptx_alone():
    with_assembly = {p for p in SOURCES if re.search(r"\basm\b\s*(volatile\s*)?\(", p.read_text())}
    outside = {str(p.relative_to(ROOT)) for p in with_assembly if p.parent != PLUGINS / "kernels" / "ptx"}
    assert with_assembly and not outside, outside


def test_every_wrapper_of_an_instruction_serves_a_kernel():
    kernels = "".join(p.read_text() for p in SOURCES if p.parent.parent == PLUGINS / "kernels")
    for path in sorted((PLUGINS / "kernels" / "ptx").glob("*.cuh")):
        names = re.findall(r"__forceinline__ \w+ (\w+)\(|^SVDQ_MMA_INT\((\w+)", path.read_text(), re.M)
        for name in {a or b for a, b in names} - {"NAME", "s8", "f16", "bf16"}:
            assert re.search(rf"\bptx::{name}\b", kernels), f"{path.relative_to(ROOT)}: {name} is used by no kernel"


def test_tables_alone_ask_for_an_architecture():
    """Host code learns of an architecture's own kernels by its row, so that another is a folder and a row."""
    tables = {PLUGINS / "kernels" / name for name in ("registry.cpp", "attention.cpp")}
    for path in SOURCES:
        if path not in tables:
            assert "SVDQ_WITH_SM" not in path.read_text(), path.relative_to(ROOT)


def test_architectures_do_not_know_each_other():
    folders = {"portable", "gemv", "attention", *(p.name for p in (PLUGINS / "kernels").glob("sm*"))}
    for path in SOURCES:
        if path.parent.parent == PLUGINS / "kernels" and path.parent.name in folders:
            for target in re.findall(r'#include "(?:kernels/|\.\./)(\w+)/', path.read_text()):
                assert target in {"common", "ptx"}, f"{path.relative_to(ROOT)} includes {target}/"
