"""The image for a Triton server: what it is made of, and where a Docker daemon is, that it is made."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.harness.builds import ROOT

FILE = ROOT / "examples" / "triton" / "Dockerfile"


def docker(*words: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def no_docker() -> str:
    """Why no image can be built here; empty when one can."""
    if shutil.which("docker") is None:
        return "needs docker"
    return "" if docker("info", timeout=60).returncode == 0 else "needs a running Docker daemon"


def test_context_has_what_the_wheel_is_made_of():
    lines = (FILE.parent / f"{FILE.name}.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines and all((ROOT / name).exists() for name in sent)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    skbuild = project["tool"]["scikit-build"]["wheel"]
    read = {"pyproject.toml", "CMakeLists.txt", project["project"]["readme"], *project["project"]["license-files"]}
    read |= {*project["build-system"]["backend-path"], *skbuild["packages"], *skbuild["force-include"]}
    read |= set(re.findall(r"^add_subdirectory\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M))
    assert sent == read


def test_extras_and_server_options_are_ours():
    text = FILE.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(re.findall(r'"(?:/src|svdq-trt)\[\$\{EXTRA\}\]"', text)) == 2
    named = re.findall(r"^(?:ARG EXTRA=|# EXTRA: )([\w-]+)", text, re.M)
    assert set(named) == {"serve", "serve-pipeline"} <= extras.keys()
    assert "--disable-auto-complete-config" in text  # as `svdq-trt triton` prints


def test_image_is_built_and_opens_its_libraries():
    if reason := no_docker():
        pytest.skip(reason)
    built = docker("build", "--file", str(FILE), "--tag", "svdq-triton-test", "--build-arg", "ARCHS=89", ".")
    assert built.returncode == 0, built.stderr[-4000:]
    code = (
        "import pycuda, tensorrt_rtx, svdq_trt.runtime.session; from svdq_trt.engine import plugin_lib as p; p.find()"
    )
    ran = docker("run", "--rm", "--entrypoint", "python3", "svdq-triton-test", "-c", code)
    assert ran.returncode == 0, ran.stderr
