"""benchmarks/trained_pipeline.py --cpp: a pipeline's engines in Python and in the program, of a tiny FluxPipeline.

The program's engines are ONNX Runtime's sessions, as Python's are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import trained_pipeline
from PIL import Image
from safetensors.torch import load_file
from trained import captions, program, teach
from trained.pipelines import PIPELINES, Flux

from svdq_trt.models import get_model
from tests.harness.builds import some_minutes

STAND_IN = """#!/bin/sh
PYTHONPATH="{root}" exec "{python}" - "$@" << END
import sys
from pathlib import Path

from svdq_trt.runtime import OnnxSession
from tests.cpu.cpp.test_text_to_image import program


class Sessions(dict):
    def __missing__(self, folder):
        return self.setdefault(folder, OnnxSession(folder))


code, last, said = program(Path("{driver}"), Sessions(), Path("{exchange}"), *sys.argv[1:])
print(last, said)
sys.exit(code)
END
"""


class Small(Flux):
    """Around flux1-tiny itself."""

    name, spec = "small", get_model("flux1-tiny")


@pytest.fixture
def made(driver, tmp_path, monkeypatch):
    """What the command leaves."""
    monkeypatch.setattr(captions, "SIDE", 64)
    monkeypatch.setitem(PIPELINES, Small.name, Small())
    torch.manual_seed(0)
    pipe = Small().make(teach.autoencoder())
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / Small.name)
    stand_in = tmp_path / "text_to_image"
    root = Path(__file__).parents[3]
    stand_in.write_text(STAND_IN.format(python=sys.executable, root=root, driver=driver, exchange=tmp_path / "x"))
    stand_in.chmod(0o755)
    options = ["--out", tmp_path, "--work", tmp_path, "--device", "cpu", "--preset", "fast", "--cpp", stand_in]
    options += ["--prompts", 2, "--sampler-steps", 2]
    monkeypatch.setattr(trained_pipeline, "PIPELINES", {Small.name: PIPELINES[Small.name]})
    monkeypatch.setattr(sys, "argv", ["", *map(str, options)])
    assert trained_pipeline.main() == 0
    return tmp_path


@some_minutes
def test_rows_of_engines_in_python_and_in_cpp(made):
    name = f"{Small.name}{program.PROGRAM}"
    results, pictures = json.loads((made / f"{name}.json").read_text()), load_file(made / f"{name}.safetensors")
    exact, python, cpp = results["ways"]
    labels = [program.EXACT, program.PYTHON, program.CPP]
    assert [way["label"] for way in results["ways"]] == labels and set(pictures) == set(labels)
    assert all(of.shape == (2, 3, 64, 64) and of.float().std() > 1 for of in pictures.values())
    assert "psnr_db" not in exact and python["psnr_db"] > 25 and cpp["psnr_db"] > 25
    assert cpp["python_db"] > 45, "up to where PyTorch's CPU rounds otherwise than its GPU"
    with Image.open(made / f"{name}.png") as drawn:
        assert drawn.height > 3 * 96
