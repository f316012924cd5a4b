"""Finding, describing and loading the plugin library."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract import ops
from svdq_trt.contract.archs import KERNELS
from svdq_trt.contract.attention import EVERY_OP
from svdq_trt.engine import plugin_lib


def fake_module(names):
    creators = [SimpleNamespace(name=n, plugin_version="1", plugin_namespace="svdq") for n in names]
    registry = SimpleNamespace(all_creators=creators, load_library=lambda path: None)
    return SimpleNamespace(__name__="fake_tensorrt", get_plugin_registry=lambda: registry)


def test_find_takes_the_environment_variable(library, monkeypatch, tmp_path):
    copy = tmp_path / "other.so"
    copy.write_bytes(library.path.read_bytes())
    monkeypatch.setenv(plugin_lib.PLUGIN_ENV, str(copy))
    found = plugin_lib.find()
    assert found.path == copy
    assert found.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert found.version.split(".")[0] == ops.PLUGIN_VERSION


def test_a_library_tells_what_it_runs_on(library):
    assert library.platform == f"linux-{platform.machine()}"
    assert library.archs and set(library.archs) <= set(KERNELS)


def test_find_missing_file_names_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv(plugin_lib.PLUGIN_ENV, str(tmp_path / "none.so"))
    with pytest.raises(ArtifactError, match=r"^SVDQ_PLUGIN_LIBRARY: no file .*none\.so, want .*pip install"):
        plugin_lib.find()


def test_find_not_an_elf_file_is_refused(tmp_path):
    path = tmp_path / "text.so"
    path.write_text("no library")
    with pytest.raises(ArtifactError, match="want a plugin library of svdq-trt"):
        plugin_lib.find(path)


def test_find_foreign_library_is_refused(library, tensorrt):  # which the foreign one needs, to be loaded at all
    with pytest.raises(ArtifactError, match="svdq_version"):
        plugin_lib.find(library.path.parent / "shim" / "libtensorrt_rtx.so")


def test_registry_holds_exactly_the_contract(tensorrt):
    assert plugin_lib.registered_ops(tensorrt.module) == set(EVERY_OP)


def test_load_twice_is_once(tensorrt):
    assert plugin_lib.load_into(tensorrt.module, tensorrt.library.path) == tensorrt.library
    assert len(tensorrt.module.get_plugin_registry().all_creators) == len(
        {(c.name, c.plugin_version, c.plugin_namespace) for c in tensorrt.module.get_plugin_registry().all_creators}
    )


def test_load_another_library_into_the_same_process_is_refused(tensorrt, tmp_path):
    other = tmp_path / "changed.so"
    other.write_bytes(tensorrt.library.path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="want one plugin library per process"):
        plugin_lib.load_into(tensorrt.module, other)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "0 ops .* without .*SVDQLinearInt4, "),
        ([*EVERY_OP, "SVDQLinearInt2"], "with unknown SVDQLinearInt2"),
    ],
)
def test_load_library_of_other_ops_is_refused(library, names, message):
    with pytest.raises(ArtifactError, match=message):
        plugin_lib.load_into(fake_module(names), library.path)


def test_exports_are_the_entry_points_and_the_c_api(library):
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", str(library.path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {line.split()[-1] for line in lines}
    api = {"svdq_linear", "svdq_mlp", "svdq_workspace_bytes", "svdq_version"}
    assert {"getCreators", "setLoggerFinder", *api} <= names
    assert [n for n in names if not n.startswith("svdq_")] in (
        ["getCreators", "setLoggerFinder"],
        ["setLoggerFinder", "getCreators"],
    )


def test_library_needs_no_cuda_and_no_tensorrt(library):
    text = subprocess.run(["readelf", "-d", str(library.path)], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in text
    assert not [x for x in text.splitlines() if "NEEDED" in x and ("cuda" in x or "nvinfer" in x or "tensorrt" in x)]


def test_parser_without_the_environments_help_survives_a_plugin(library, tmp_path, make_graph, node):
    """The process is fresh and has no LD_LIBRARY_PATH: the parser opens its core by the bare name."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    model = tmp_path / "m.onnx"
    model.write_bytes(make_graph([node("SVDQLinearW4A8")], lead=(2, 9)).SerializeToString())
    code = textwrap.dedent(f"""
        from pathlib import Path
        import tensorrt_rtx as trt
        from svdq_trt.engine import plugin_lib
        plugin_lib.load_into(trt, Path({str(library.path)!r}))
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse_from_file({str(model)!r})
        print("parsed", network.num_layers > 0)
    """)
    root = str(plugin_lib.__file__).removesuffix("/svdq_trt/engine/plugin_lib.py")
    env = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "parsed True"), done.stderr


def test_import_touches_neither_cuda_nor_tensorrt():
    code = (
        "import sys, svdq_trt.engine.plugin_lib, svdq_trt.engine.plugin_layers; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'tensorrt', 'tensorrt_rtx', 'onnx')])"
    )
    root = str(plugin_lib.__file__).removesuffix("/svdq_trt/engine/plugin_lib.py")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
