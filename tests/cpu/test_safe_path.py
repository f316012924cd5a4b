"""What lies in the current folder, or in a folder that is read, is never imported. All of it here is harmless."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svdq_trt.base import child
from svdq_trt.base.errors import ArtifactError, SvdqError
from svdq_trt.build.process import StageRunner
from svdq_trt.build.stage import File
from svdq_trt.build.stages.run_onnx import RunReference

ROOT = Path(__file__).resolve().parents[2]
#: modules that some library of a stage's imports, of the standard library and not
NAMES = ("queue", "gzip", "random", "psutil", "rich", "torch", "numpy", "onnx", "sitecustomize", "usercustomize")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A current folder full of modules, each of which would leave its name; returns the names left."""
    folder = tmp_path / "from outside"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.chdir(folder)
    return lambda: sorted(p.stem for p in folder.glob("*.ran"))


def test_the_trap_works(trap):
    subprocess.run([sys.executable, "-m", "base64", "-t"], capture_output=True)
    subprocess.run([sys.executable, "-c", "import queue"], check=True)
    assert "queue" in trap()


@pytest.mark.parametrize("variable", ["", "PYTHONPATH"])
def test_a_stage_imports_nothing_from_the_current_folder(trap, monkeypatch, tmp_path, variable):
    if variable:  # as PYTHONPATH=$PYTHONPATH:... leaves it where there was none
        monkeypatch.setenv(variable, f":{os.environ.get(variable, '')}:{tmp_path}:")
    onnx = File("none", path=tmp_path / "none.onnx")
    stage = RunReference("sdxl-tiny", onnx, {}, 0, None, "FP16", out=tmp_path / "none.npz")
    with pytest.raises((SvdqError, RuntimeError)):  # long after its imports
        StageRunner().run(stage, tmp_path / "stage.log", lambda *_: None)
    assert "Traceback" in (tmp_path / "stage.log").read_text()
    assert trap() == []


def test_what_a_stage_starts_is_as_safe(trap, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f":{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":")
    env = child.environment(X="1")
    assert env["PYTHONSAFEPATH"] == env["X"] == "1" and env["LD_LIBRARY_PATH"] == ""
    assert "" not in env["PATH"].split(":") and "PYTHONSAFEPATH" not in os.environ
    code = (
        "import subprocess, sys, multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        " subprocess.run([sys.executable, '-c', 'import queue, gzip'], check=True)\n"
        " p = m.get_context('spawn').Process(target=print, args=('spawned',)); p.start(); p.join()\n"
        " assert p.exitcode == 0\n"
    )
    script = tmp_path / "grandchildren.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script)], env=env, check=True, timeout=60)
    assert trap() == []


def test_documented_torchrun_imports_nothing_from_the_current_folder(trap, tmp_path):
    program = tmp_path / "bin" / "svdq-trt"  # what pip writes for pyproject.toml's entry
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom svdq_trt.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    torchrun = program.with_name("torchrun")
    torchrun.write_text(f"#!{sys.executable}\nimport sys\nfrom torch.distributed.run import main\nsys.exit(main())\n")
    torchrun.chmod(0o755)
    launch = ["--standalone", "--nproc-per-node", "2", "--no-python"]
    words = ["svdq-trt", "quantize", "--model", "none", "--arch", "sm_89"]
    env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(torchrun), *launch, *words], env=env, capture_output=True, text=True, timeout=120)
    assert "svdq-trt: " in done.stderr, done.stderr
    assert trap() == []
    for document in ("README.md", "docs/quantizing.md", "svdq_trt/cli/quantize.py"):
        assert "-m svdq_trt" not in (ROOT / document).read_text()


def test_command_started_with_m_imports_no_library_from_the_current_folder(trap, tmp_path):
    """What this package needs before it can look at sys.path is the standard library's; -P keeps even that away."""
    (Path.cwd() / "psutil.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    (Path.cwd() / "msgspec.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "svdq_trt.cli", "--version"], env=env, check=True)
    assert not {"psutil", "msgspec", "queue", "gzip"} & set(trap())
    subprocess.run([sys.executable, "-P", "-m", "svdq_trt.cli", "--version"], env=env, check=True)
    assert not {"psutil", "msgspec", "queue", "gzip"} & set(trap())


def test_a_stage_runs_the_package_that_declared_it(tmp_path, monkeypatch):
    """Also from a source folder that nothing has installed and that the caller is not in."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    code = "import svdq_trt; print(svdq_trt.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=child.environment(), capture_output=True, text=True)
    assert Path(done.stdout.strip()).samefile(ROOT / "svdq_trt" / "__init__.py")


@pytest.mark.parametrize(
    ("index", "file"),
    [
        ({"_class_name": ["pipeline", "Own"]}, "pipeline.py"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "None.py"),  # what diffusers asks for where nothing is named
        ({"_class_name": "StableDiffusionXLPipeline", "unet": ["own_unet", "Own"]}, "unet/own_unet.py"),
    ],
)
def test_a_pipelines_own_python_files_are_not_run(tmp_path, index, file):
    from svdq_trt.calibrate.sample import _load
    from svdq_trt.models import get_model

    folder, marker = tmp_path / "pipe", tmp_path / "ran"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\n")
    (folder / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.42.0", **index}))
    spec = get_model("sdxl-tiny")
    with pytest.raises(ArtifactError, match=r"cannot be loaded .*contains custom code"):
        _load(spec, folder, spec.torch_dtype)
    assert not marker.exists()


def test_a_matplotlibrc_of_the_current_folder_changes_no_picture(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 99\nbackend: TkAgg\n")
    code = (
        "from svdq_trt.evaluate.pictures import plt; import matplotlib as m, io\n"
        "assert not m.rcParams['text.usetex'] and m.rcParams['lines.linewidth'] != 99\n"
        "assert m.get_backend().lower() == 'agg'\n"
        "figure, axis = plt.subplots(); axis.set(title=r'a $\\frac name$'); figure.savefig(io.BytesIO())"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)


def test_a_served_engine_brings_no_module(tmp_path):
    from svdq_trt.serve.config import Serving
    from svdq_trt.serve.repository import write_model
    from tests.harness.serve_toy import write_toy

    pytest.importorskip("tritonclient")
    engine = write_toy(tmp_path / "toy")
    for name in ("triton_python_backend_utils.py", "numpy.so", "model.py"):
        manifest = engine / "manifest.json"
        data = json.loads(manifest.read_text())
        (engine / data["plugin"]["file"]).rename(engine / name)
        data["plugin"]["file"] = name
        manifest.write_text(json.dumps(data))
        with pytest.raises(ArtifactError, match="that Python would import"):
            write_model(engine, tmp_path / "models", Serving("toy", "python", "gpu", 1, None))
    assert not list(tmp_path.glob("models/*"))
