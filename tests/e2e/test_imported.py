"""A file of each maker, by its own code where that runs here, becomes a plan that agrees with the 16-bit model.

The makers quantize the weights of `--random-weights 0`, so the build's own check has what to compare with.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svdq_trt import calibrate
from svdq_trt.base.errors import EXIT_USAGE
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import INT4
from svdq_trt.interop import export_checkpoint
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import quantize_model
from tests.harness import builds
from tests.harness import maker_peers as peers

MODEL = "sdxl-tiny"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The folder of an artifact that is quantized here."""
    folder = tmp_path_factory.mktemp("ours")
    words = ("--model", MODEL, "--arch", "sm_89", "--random-weights", "0", "--preset", "fast", "--device", "cpu")
    done = builds.svdq("quantize", *words, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder / f"{MODEL}-shared" / "int4-r32"


def ours(folder: Path, maker: str, request) -> Path:
    """Quantized here, and written as the maker has it."""
    path = folder / ("lite" if maker == "nunchaku-lite" else f"{maker}.safetensors")
    export_checkpoint(request.getfixturevalue("artifact"), path, maker)
    return path


def cache_dits(folder: Path, fmt: str, _: object) -> Path:
    pytest.importorskip("cache_dit", reason="cache-dit is not installed")
    peers.cache_dit(get_model(MODEL), f"svdq_{fmt}_r32_dq", folder)
    return folder


def modelopts(folder: Path, _: str, __: object) -> Path:
    pytest.importorskip("modelopt", reason="ModelOpt is not installed")
    peers.modelopt(get_model(MODEL), folder, 16, [])
    return folder


FILES = {
    "nunchaku": (ours, "nunchaku", 89),
    "nunchaku-lite": (ours, "nunchaku-lite", 89),
    "comfy-kitchen": (ours, "comfy-kitchen", 89),
    "cache-dit-int4": (cache_dits, "int4", 89),
    "cache-dit-nvfp4": (cache_dits, "nvfp4", 120),
    "modelopt": (modelopts, "", 120),
}


@pytest.mark.parametrize(
    "make,of,arch",
    [
        pytest.param(*given, id=name, marks=builds.some_minutes if given[0] is ours and name != "nunchaku" else ())
        for name, given in FILES.items()
    ],
)
def test_it_becomes_a_plan(tmp_path, request, make, of, arch):
    (tmp_path / "theirs").mkdir()
    source, out = make(tmp_path / "theirs", of, request), tmp_path / "out"
    words = ("--model", MODEL, "--random-weights", "0", "--arch", f"sm_{arch}", *builds.FIXED)
    done = builds.svdq("build", *words, "--quantized", str(source), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = out / f"{MODEL}-sm_{arch}"
    m = json.loads((folder / "manifest.json").read_text())
    assert (folder / "model.plan").stat().st_size == m["plan"]["bytes"]
    assert builds.plugin_nodes(m) == sorted({q["node"] for q in m["quantized"]}) != []
    (output,) = m["accuracy"]["outputs"]
    # Measured 14.6 dB of cache-dit's int4, which has neither data nor smoothing; a wrong order gives none.
    assert output["sqnr_db"] > 12, output


def test_plugins_attention_is_refused_where_no_node_gives_q_k_and_v(tmp_path):
    """Which nodes a file has is known once it is read: a graph is made, and no plan."""
    spec, skip = get_model("pixart-tiny"), ("*.attn1.*", "*.attn2.*")
    module, path = load(spec, random_seed=0), tmp_path / "svdq.safetensors"
    groups = spec.groups(module, skip)
    data = calibrate.collect(module, spec, groups, data=None, progress=silent)
    quantize_model(module, spec, groups, data, INT4, 16, get_preset("fast"), path, "key", silent, skip=skip)
    words = ("--model", spec.name, "--arch", "sm_89", "--quantized", str(path), "--no-check", *builds.FIXED)
    done = builds.svdq("build", *words, "--attention", "plugin", "--out", str(tmp_path / "out"))
    assert done.returncode == EXIT_USAGE, done.stdout + done.stderr
    assert "--attention: plugin, but none of the attentions of pixart-tiny can be" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "out").rglob("*.onnx")) and not list((tmp_path / "out").rglob("*.plan"))


def silent(*_: object) -> None:
    pass
