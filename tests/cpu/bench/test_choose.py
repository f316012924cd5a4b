"""``--choose``: whose link it is, what it never replaces, and between which engines it chooses."""

from __future__ import annotations

import os

import pytest

from svdq_trt.base.errors import ArtifactError
from svdq_trt.bench.choose import check_alike, check_place, place
from tests.harness.manifests import complete, quantized_entry, tensor_entry


@pytest.fixture
def engines(tmp_path):
    folders = [tmp_path / "engines" / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(folder.name)
    return folders


@pytest.mark.parametrize("where", ["best", "engines/best"])
def test_a_link_to_the_chosen_that_moves_with_its_folder(engines, tmp_path, where):
    dest = tmp_path / where
    place(dest, engines[0], engines)
    assert dest.is_symlink() and not dest.readlink().is_absolute()
    assert (dest / "manifest.json").read_text() == "one"
    place(dest, engines[1], engines)  # an earlier choice of ours is replaced
    assert (dest / "manifest.json").read_text() == "two"
    (tmp_path / "elsewhere").mkdir()
    for name in {"engines", "best"} & set(os.listdir(tmp_path)):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert (tmp_path / "elsewhere" / where / "manifest.json").read_text() == "two"
    assert not [p for p in tmp_path.rglob("*.tmp")]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda dest, one: dest.mkdir(), "something that is no link, want a free name, or a link to one of these"),
        (lambda dest, one: dest.write_text("mine"), "something that is no link"),
        (lambda dest, one: dest.symlink_to("/nowhere"), "a link to /nowhere, want a free name"),
        (lambda dest, one: dest.symlink_to(one.parent), "a link to .*engines, want a free name"),
        (lambda dest, one: dest.symlink_to(dest.name), "link"),
    ],
    ids=["folder", "file", "dangling link", "another's link", "link to itself"],
)
def test_nothing_of_the_users_is_replaced(engines, tmp_path, make, text):
    dest = tmp_path / "best"
    make(dest, engines[0])
    before = os.lstat(dest)
    for act in (lambda: check_place(dest, engines), lambda: place(dest, engines[0], engines)):
        with pytest.raises(ArtifactError, match=text):
            act()
    assert os.lstat(dest) == before


def test_places_that_are_none(engines, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder to put it in"):
        check_place(tmp_path / "missing" / "best", engines)
    with pytest.raises(ArtifactError, match="a place inside an engine, want one beside the engines"):
        check_place(engines[1] / "best", engines)


def test_what_appears_meanwhile_stays(engines, tmp_path, monkeypatch):
    from svdq_trt.bench import choose

    dest = tmp_path / "best"
    monkeypatch.setattr(choose, "check_place", lambda *_: dest.write_text("mine"))
    with pytest.raises(ArtifactError, match=r"no link can be made \(File exists\)"):
        place(dest, engines[0], engines)
    assert dest.read_text() == "mine"


@pytest.mark.parametrize(
    "part, value",
    [
        ("format", "w4a8"),
        ("rank", 16),
        ("quantized", [quantized_entry("a", "a")]),
        ("kept_16bit", [{"name": "b", "reason": "small"}]),
        ("inputs", [tensor_entry("x", "float16", (1, 1, 1))]),
        ("arch", "sm_120"),
    ],
)
def test_speed_alone_does_not_choose_between_two_models(engines, part, value):
    one, two = engines
    with pytest.raises(ArtifactError, match=f"two: another {part} than .*one, want engines that differ in their att"):
        check_alike({one: complete(), two: complete(**{part: value})})


def test_attention_and_tensorrt_may_differ(engines):
    one, two = engines
    other = complete(attention="plugin", plugin_layers=["a"], backend={"name": "tensorrt", "version": "2"})
    check_alike({one: complete(), two: other})


def test_two_checkpoints_are_not_chosen_between(engines):
    """Imported models of one shape differ in nothing but the digest of what they were imported from."""
    origin = {"date": "", "platform": "", "code": "", "calibration": None, "weights": None}
    one, same, other = (complete(origin=origin | {"quantized": digest}) for digest in ("a", "a", "b"))
    check_alike({engines[0]: one, engines[1]: same})
    with pytest.raises(
        ArtifactError, match=r"two: another checkpoint than .*one, want engines that differ in their att"
    ):
        check_alike({engines[0]: one, engines[1]: other})
