"""Which library holds device memory, and that neither is loaded without need."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.runtime import device


def in_a_new_process(code: str, *path: object) -> str:
    lines = [f"sys.path.insert(0, {str(p)!r})" for p in path]
    source = "\n".join(["import sys", *lines, textwrap.dedent(code)])
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def no_gpu_pycuda(tmp_path):
    """A pycuda that imports anywhere and finds no GPU."""
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text(
        "class Error(Exception):\n    pass\n\n\ndef init():\n    raise Error('no CUDA-capable device')\n"
    )
    return tmp_path


def test_importing_a_session_or_load_loads_neither():
    code = """
        import svdq_trt.pipeline, svdq_trt.runtime.request, svdq_trt.runtime.session, svdq_trt.runtime.onnx_session
        print(sorted({"torch", "pycuda", "tensorrt_rtx", "onnx", "onnxruntime"} & set(sys.modules)))
    """
    assert in_a_new_process(code) == "[]"


def test_auto_takes_pycuda_where_torch_is_not_imported(no_gpu_pycuda):
    code = """
        from svdq_trt.base.errors import UnsupportedError
        from svdq_trt.runtime.device import choose_memory, open_device
        try:
            open_device(choose_memory("auto"), 0)
        except UnsupportedError as error:
            print(error, "torch" in sys.modules)
    """
    said = in_a_new_process(code, no_gpu_pycuda)
    assert said == ("CUDA device 0: not found (no CUDA-capable device), want an NVIDIA GPU and its driver. False")


def test_auto_takes_torch_where_it_is_imported(no_gpu_pycuda):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code = """
        import torch
        from svdq_trt.runtime.device import choose_memory, open_device
        try:
            open_device(choose_memory("auto"), 0)
        except Exception as error:
            print(error)
    """
    assert in_a_new_process(code, no_gpu_pycuda).startswith("torch: sees no CUDA GPU")


def test_what_is_missing_is_reported(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    for memory, extra in (("pycuda", "runtime"), ("torch", "build")):
        wanted = rf'{memory} is not installed, want {memory}\. pip install "svdq-trt\[{extra}\]"'
        with pytest.raises(UnsupportedError, match=wanted):
            device.choose_memory(memory)
    with pytest.raises(UnsupportedError, match="neither torch nor pycuda is installed"):
        device.choose_memory("auto")
    with pytest.raises(UsageError, match="memory: 'cupy', want one of auto, torch, pycuda"):
        device.choose_memory("cupy")
