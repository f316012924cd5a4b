"""docs/manifest.md is what tools/gen_manifest.py makes of the class Manifest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generator():
    spec = importlib.util.spec_from_file_location("gen_manifest", ROOT / "tools" / "gen_manifest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date(generator):
    assert generator.main(["--check"]) == 0, "run python tools/gen_manifest.py"


def test_stale_page_fails_and_write_mends_it(generator, monkeypatch, tmp_path, capsys):
    page = tmp_path / "manifest.md"
    monkeypatch.setattr(generator, "PAGE", page)
    assert generator.main([]) == 0 and generator.main(["--check"]) == 0
    page.write_text(page.read_text().replace("`rank`", "`ranks`"))
    assert generator.main(["--check"]) == 1
    assert "docs/manifest.md: stale" in capsys.readouterr().err
