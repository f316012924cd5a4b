"""The results of a killed job are reused, and nothing else."""

from __future__ import annotations

import pytest

from svdq_trt.base.journal import Journal

DEEP = b'{"name": "b", "value": ' + b"[" * 100_000 + b"\n"


def test_values_come_back_under_the_same_key_only(tmp_path):
    path = tmp_path / "j"
    first = Journal(path, "key")
    first.add("a", 1.5)
    first.add("b", {"x": [1]})
    assert Journal(path, "key").values == {"a": 1.5, "b": {"x": [1]}}
    assert Journal(path, "other").values == {}
    assert Journal(path, "key").values == {}  # the other one has started it again


@pytest.mark.parametrize(
    "torn",
    [
        b'{"name": "b", "val',
        b'{"name": "b", "value": 2}',
        b"\xff\n",
        b"[]\n",
        b'{"x": 1}\n',
        DEEP,
        b'{"name": "b", "value": NaN}\n',
    ],
    ids=["torn", "no end of line", "no UTF-8", "no object", "no name", "deep", "NaN"],
)
def test_a_damaged_end_is_cut_off_and_written_over(tmp_path, torn):
    path = tmp_path / "j"
    Journal(path, "key").add("a", 1)
    path.write_bytes(path.read_bytes() + torn)
    again = Journal(path, "key")
    assert again.values == {"a": 1}
    again.add("c", 3)
    assert Journal(path, "key").values == {"a": 1, "c": 3}
