"""Libraries beside a plan: nothing is loaded before its digest fits, and nothing that no manifest names."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract.attention import EVERY_OP
from svdq_trt.contract.ops import PLUGIN_NAMESPACE, PLUGIN_VERSION
from svdq_trt.engine import plugin_lib
from svdq_trt.runtime.opening import open_engine

SOURCE = """
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) { FILE* f = fopen(MARKER, "w"); if (f) fclose(f); }
const char* svdq_version(void) { return "1.0.0"; }
int svdq_supports(int format, int dtype, int sm) { return sm >= 80; }
"""


@pytest.fixture
def make(tmp_path):
    """make(path) -> marker: a library that leaves a file when it is loaded, and does nothing else."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")

    def library(path, tag):
        marker = tmp_path / f"{tag}.loaded"
        source = tmp_path / f"{tag}.c"
        source.write_text(SOURCE)
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-shared", "-fPIC", f'-DMARKER="{marker}"', str(source), "-o", str(path)], check=True)
        return marker

    return library


@pytest.fixture
def real(monkeypatch):
    """plugin_lib itself, which the fixture `trt` replaces."""
    return plugin_lib.find, plugin_lib.load_into, plugin_lib.preload_core


def beside(folder, digest, embedded=False):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["plugin"] |= {"embedded": embedded, "sha256": digest}
    path.write_text(json.dumps(data))


def restore(real, trt, monkeypatch):
    creators = [
        SimpleNamespace(name=n, plugin_version=PLUGIN_VERSION, plugin_namespace=PLUGIN_NAMESPACE) for n in EVERY_OP
    ]
    registry = SimpleNamespace(all_creators=[], load_library=lambda path: registry.all_creators.extend(creators))
    trt.get_plugin_registry = lambda: registry
    monkeypatch.setattr(plugin_lib, "find", real[0])
    monkeypatch.setattr(plugin_lib, "load_into", real[1])
    monkeypatch.setattr(plugin_lib, "_loaded", {})
    trt.__name__ = "tensorrt"  # no shim


def test_digest_goes_before_loading(real, trt, folder, make, monkeypatch):
    marker = make(folder / "libsvdq_trt_plugin.so", "plugin")
    restore(real, trt, monkeypatch)
    beside(folder, "0" * 64)
    with pytest.raises(ArtifactError, match="another SHA-256"):
        open_engine(folder, allow_host_code=True)
    assert not marker.exists() and trt.deserialized == []


def test_all_else_goes_before_loading_too(real, trt, folder, make, monkeypatch):
    library = folder / "libsvdq_trt_plugin.so"
    marker = make(library, "plugin")
    restore(real, trt, monkeypatch)
    beside(folder, hashlib.sha256(library.read_bytes()).hexdigest())
    plan = folder / "model.plan"
    good = plan.read_bytes()
    plan.write_bytes(good[::-1])
    with pytest.raises(ArtifactError, match=r"model\.plan: another SHA-256"):
        open_engine(folder, allow_host_code=True)
    assert not marker.exists()
    plan.write_bytes(good)
    assert open_engine(folder, allow_host_code=True).engines == (trt.engine,)
    assert marker.exists()  # with consent, and the digest that the manifest names


@pytest.mark.parametrize("consent", [False, True])
def test_library_of_the_folder_is_left_alone_where_it_is_not_asked_for(
    real, trt, folder, make, monkeypatch, consent, tmp_path
):
    marker = make(folder / "libsvdq_trt_plugin.so", "plugin")
    make(tmp_path / "installed" / "plugin.so", "installed")
    restore(real, trt, monkeypatch)
    monkeypatch.setenv(plugin_lib.PLUGIN_ENV, str(tmp_path / "installed" / "plugin.so"))
    beside(folder, "0" * 64, embedded=consent)
    open_engine(folder, allow_host_code=consent)  # with consent: TensorRT loads what is in the plan, whose digest fits
    assert not marker.exists()


def test_shim_beside_a_plan_is_never_loaded(tmp_path, folder, make, monkeypatch):
    marker = make(folder / "shim" / "libtensorrt_rtx.so", "shim")
    installed = make(tmp_path / "installed" / "shim" / "libtensorrt_rtx.so", "installed")
    make(folder / "libsvdq_trt_plugin.so", "plugin")
    (tmp_path / "installed" / "plugin.so").write_bytes((folder / "libsvdq_trt_plugin.so").read_bytes())
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from svdq_trt.engine import plugin_lib; from svdq_trt.contract.attention import EVERY_OP\n"
        "creators = [N(name=n, plugin_version='1', plugin_namespace='svdq') for n in EVERY_OP]\n"
        "r = N(all_creators=creators, load_library=lambda p: None)\n"
        "plugin_lib.load_into(N(__name__='tensorrt_rtx', get_plugin_registry=lambda: r), Path(sys.argv[1]))"
    )
    monkeypatch.setenv(plugin_lib.PLUGIN_ENV, str(tmp_path / "installed" / "plugin.so"))
    subprocess.run([sys.executable, "-P", "-c", code, str(folder / "libsvdq_trt_plugin.so")], check=True)
    assert installed.exists() and not marker.exists()
