"""Reuse of stages: only when key and files are what they were."""

from __future__ import annotations

import os

from svdq_trt.build import freshness


def test_fresh_until_key_or_file_changes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1234")
    freshness.store(tmp_path, "s", "k1", ["a.bin"], {"v": 1})
    assert freshness.lookup(tmp_path, "s", "k1") == {"v": 1}
    assert freshness.lookup(tmp_path, "s", "k2") is None
    assert freshness.lookup(tmp_path, "t", "k1") is None
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    assert freshness.lookup(tmp_path, "s", "k1") is None


def test_missing_file_and_damaged_record_are_stale(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    freshness.store(tmp_path, "s", "k", ["a.bin"], {})
    (tmp_path / "a.bin").unlink()
    assert freshness.lookup(tmp_path, "s", "k") is None
    no_result = '{"key": "k", "files": {}, "result": 1}'
    for text in ("", "[]", "3", "\x00", '{"key": "k"}', '{"key": "k", "files": 1}', no_result):
        freshness.record_path(tmp_path, "s").write_text(text)
        assert freshness.lookup(tmp_path, "s", "k") is None


def test_key_depends_on_params_and_code():
    a = freshness.stage_key("s", ("svdq_trt/contract",), {"x": 1})
    assert a == freshness.stage_key("s", ("svdq_trt/contract",), {"x": 1})
    assert a != freshness.stage_key("s", ("svdq_trt/contract",), {"x": 2})
    assert a != freshness.stage_key("s", ("svdq_trt/contract/reference",), {"x": 1})
