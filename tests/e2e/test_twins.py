"""Every tiny twin through the whole path, for sm_89 and sm_120, and compared with its 16-bit model.

What only one model need show (resuming, reuse, options, errors) is in test_tiny.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from svdq_trt.models import MODELS, get_model
from svdq_trt.models.recipe import weight_layers

ROOT = Path(__file__).resolve().parents[2]
FORMATS = {"sm_89": "int4", "sm_120": "nvfp4"}
TWINS = [name for name in MODELS if name.endswith("-tiny")]


@pytest.fixture(scope="module", params=TWINS)
def engines(request, tmp_path_factory):
    """(model name, folder with both its engines)."""
    out = tmp_path_factory.mktemp(request.param)
    words = [sys.executable, str(ROOT / "build_engines.py"), "--model", request.param, "--random-weights", "0"]
    words += ["--out", str(out), *(w for arch in FORMATS for w in ("--arch", arch))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, out


@pytest.mark.parametrize("arch", FORMATS)
def test_engine_is_built_and_agrees_with_the_16_bit_model(engines, arch):
    name, out = engines
    folder = out / f"{name}-{arch}"
    m = json.loads((folder / "manifest.json").read_text())
    assert (folder / "model.plan").stat().st_size == m["plan"]["bytes"]
    assert {q["format"] for q in m["quantized"]} == {FORMATS[arch], "w4a16"}
    # TensorRT compiled exactly the manifest's nodes into plugin layers, and no layer is unaccounted for.
    assert sorted(m["plugin_layers"]) == sorted({q["node"] for q in m["quantized"]})
    assert all(k["reason"] for k in m["kept_16bit"])
    names = {q["name"] for q in m["quantized"]} | {k["name"] for k in m["kept_16bit"]}
    assert names == set(weight_layers(get_model(name).build()))
    (output,) = m["accuracy"]["outputs"]
    # Measured 21 dB and more; a wrong scale, a swapped stream or a lost branch gives less than 10.
    assert output["sqnr_db"] > 18 and output["cosine"] > 0.99, output
