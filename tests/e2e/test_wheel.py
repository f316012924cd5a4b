"""What ``pip wheel .`` makes, installed in an environment of its own: an engine is finished, checked and served."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile

import numpy as np
import pytest

from svdq_trt.runtime import OnnxSession
from tests.harness.builds import ROOT
from tests.harness.manifests import change_manifest
from tests.harness.triton_server import TritonServer, ask, missing


def pip(*words: str) -> str:
    """Runs pip; returns its output. It takes packages from where `make` has them."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel. What an installation in this folder has compiled is not compiled again, if its nvcc is still there."""
    if not list(ROOT.glob("build/*/CMakeCache.txt")):
        pytest.skip("nothing is compiled in this folder, which takes minutes: make, or pip install -e .")
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT))
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """Python of an environment that has the wheel with the extra `triton`, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder)
    python = folder / "bin" / "python3"
    pip("--python", str(python), "install", "--quiet", "--no-compile", f"{wheel}[triton]")
    return python


@pytest.fixture(scope="module")
def engine(sdxl_tiny, tmp_path_factory):
    """sdxl-tiny for sm_89 as a machine without TensorRT leaves it."""
    out = tmp_path_factory.mktemp("engines")
    sdxl_tiny.copy(out, "sm_89", check=False)
    folder = out / "sdxl-tiny-sm_89"
    (folder / "model.plan").unlink()
    change_manifest(folder, plan={}, backend={})
    return folder


@pytest.fixture
def svdq(bare, tmp_path):
    """Runs the wheel's command in an empty folder; returns the finished process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = bare.with_name("svdq-trt")
    return lambda *words: subprocess.run([command, *words], capture_output=True, text=True, cwd=tmp_path, env=env)


def test_wheel_has_what_it_needs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = (file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    libraries = {"libsvdq.so", "libsvdq_trt_plugin.so", "libsvdq_trt_autoload.so", "shim/libtensorrt_rtx.so"}
    assert {name.removeprefix("svdq_trt/lib/") for name in names if ".so" in name} == libraries
    sources = {name for name in names if name.endswith(".py")}
    ours = {f"svdq_trt/{p.relative_to(ROOT / 'svdq_trt')}" for p in (ROOT / "svdq_trt").rglob("*.py")}
    ours |= {f"svdq_export/{p.relative_to(ROOT / 'export')}" for p in (ROOT / "export").rglob("*.py")}
    assert sources == ours
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert "License-Expression: Apache-2.0" in metadata


def test_environment_is_bare_and_whole(bare):
    pip("--python", str(bare), "check")
    have = {line.partition("==")[0] for line in pip("--python", str(bare), "list", "--format=freeze").splitlines()}
    assert "svdq-trt" in have and not have & {"torch", "diffusers", "matplotlib"}
    pip("--python", str(bare), "install", "--dry-run", "--no-index", "svdq-trt[triton]")  # as error messages say


def test_command_names_the_extra_that_is_missing(svdq):
    done = svdq("build", "--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0")
    assert done.returncode == 1 and re.search(r'pip install "svdq-trt\[build\]"$', done.stderr.strip())


def test_engine_is_finished_checked_and_served(svdq, bare, engine, tmp_path):
    for command in (["finish"], ["verify", "--arch", "sm_89"]):
        done = svdq(*command, str(engine))
        assert done.returncode == 0, done.stderr
    words = ("--repository", str(tmp_path / "models"), "--variant", "python", "--device", "cpu", "--name", "tiny")
    done = svdq("triton", str(engine), *words)
    assert done.returncode == 0, done.stderr
    if reason := missing():
        pytest.skip(reason)
    with OnnxSession(engine, device="cpu", threads=len(os.sched_getaffinity(0))) as session:
        rng = np.random.default_rng(0)
        inputs = {p.name: rng.standard_normal(p.min).astype(p.dtype) for p in session.inputs}
        want = session.run(inputs)["out_sample"]
    (tmp_path / "server").mkdir()
    with TritonServer(tmp_path / "models", tmp_path / "server", ["tiny"], python=bare) as server:
        got = ask(server, "grpc", "tiny", inputs)["out_sample"]
        assert np.array_equal(got, want)
