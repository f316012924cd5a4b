"""docs/manifest.md is what tools/gen_manifest.py makes of the class Manifest."""

from __future__ import annotations

from tools import gen_manifest


def test_page_is_up_to_date():
    assert gen_manifest.main(["--check"]) == 0, "run python tools/gen_manifest.py"


def test_stale_page_fails_and_write_mends_it(monkeypatch, tmp_path, capsys):
    page = tmp_path / "manifest.md"
    monkeypatch.setattr(gen_manifest, "PAGE", page)
    assert gen_manifest.main([]) == 0 and gen_manifest.main(["--check"]) == 0
    page.write_text(page.read_text().replace("`rank`", "`ranks`"))
    assert gen_manifest.main(["--check"]) == 1
    assert "docs/manifest.md: stale" in capsys.readouterr().err
