"""Reuse of stages: only when key and files are unchanged, and the key covers all that a stage runs."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.build import code, freshness, stages
from svdq_trt.build.config import Sampling
from svdq_trt.build.folder import place
from svdq_trt.build.stage import UNKEYED, File, Step, from_json
from svdq_trt.build.stages.allocate import Allocate
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.compare import Compare
from svdq_trt.build.stages.export import Export
from svdq_trt.build.stages.export_part import ExportPart
from svdq_trt.build.stages.lora import ApplyLoras
from svdq_trt.build.stages.plan import Plan
from svdq_trt.build.stages.quantize import Quantize
from svdq_trt.build.stages.reference_export import ReferenceExport
from svdq_trt.build.stages.run_onnx import RunQuantized, RunReference
from svdq_trt.build.stages.sample import Sample
from svdq_trt.build.stages.take_quantized import TakeQuantized
from svdq_trt.build.stages.weights import LoraAt, Weights

OUT = Path("/out")
A = File("a", path=OUT / "a")
WEIGHTS = Weights("sdxl-tiny", "digest", random_weights=0)
RANGES = {"batch": (1, 4)}
CALIBRATE = Calibrate(WEIGHTS, None, (), "cpu", out=OUT / "calib.safetensors")
PART = ("text_encoder", "", "Qwen3Model", {"hidden_size": 64}, "float16", 77, (-2,))
SAMPLING = Sampling(OUT, OUT / "prompts.txt")
PROFILE = TensorProfile("sample", "float16", (1,), (2,), (4,))
STEPS = [
    Sample("sdxl-tiny", "source", 64, 64, 1, "cpu", sampling=SAMPLING, out=OUT / "s"),
    CALIBRATE,
    Allocate(CALIBRATE, "int4", 10**6, None, None, out=OUT / "allocation.json"),
    Quantize(CALIBRATE, "int4", 32, None, "fast", out=OUT / "svdq.safetensors"),
    TakeQuantized("sdxl-tiny", A, format="int4", out=OUT / "svdq.safetensors"),
    ApplyLoras("sdxl-tiny", A, (LoraAt(A, 0.5, A),), False, "int4", WEIGHTS, out=OUT / "svdq.safetensors"),
    Export("sdxl-tiny", A, RANGES, 0, True, "int4", out=OUT / "model.onnx"),
    ExportPart(*PART, "digest", RANGES, pipeline=OUT, variant="", random_weights=0, out=OUT / "model.onnx"),
    ReferenceExport(WEIGHTS, RANGES, (), False, out=OUT / "model-fp16.onnx"),
    RunReference("sdxl-tiny", A, RANGES, 1, None, "FP16", out=OUT / "reference.npz"),
    RunQuantized("sdxl-tiny", A, RANGES, 1, A, "int4", out=OUT / "quantized.npz"),
    Compare(A, A, "int4", "title", artifact=OUT / "a", out=OUT / "accuracy.png"),
    Plan(A, 89, "tensorrt-rtx", "1.7.1.116", (PROFILE,), A, False, out=OUT / "model.plan"),
]
NAMES = [type(step).__name__ for step in STEPS]


def test_fresh_until_key_or_file_changes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1234")
    stored = freshness.store(tmp_path, "s", "k1", ["a.bin"], {"v": 1})
    assert freshness.lookup(tmp_path, "s", "k1") == stored and stored.result == {"v": 1}
    assert freshness.lookup(tmp_path, "s", "k2") is None
    assert freshness.lookup(tmp_path, "t", "k1") is None
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    assert freshness.lookup(tmp_path, "s", "k1") == stored  # a copy that lost its time is the same file
    (tmp_path / "a.bin").write_bytes(b"1235")
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    assert freshness.lookup(tmp_path, "s", "k1") is None  # and one of the same size and time need not be


@pytest.mark.parametrize(("name", "linked"), [("svdq.safetensors", True), ("model.onnx.data", False)])
def test_a_shared_file_is_put_where_another_one_lies(tmp_path, name, linked):
    """Of the same size and time: as of two builds whose reused stages are of one day."""
    (tmp_path / "shared").mkdir()
    source, target = tmp_path / "shared" / name, tmp_path / name
    source.write_bytes(b"rank 64")
    target.write_bytes(b"rank 32")
    os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    digest = freshness.digest_of(source)
    place(source, target, digest)
    assert target.read_bytes() == b"rank 64" and target.samefile(source) is linked
    inode = target.stat().st_ino
    place(source, target, digest)
    assert target.stat().st_ino == inode  # it stays


def test_an_onnx_file_has_one_name(tmp_path):
    """Onnx refuses external data with several hard links."""
    source, target = tmp_path / "shared.onnx.data", tmp_path / "model.onnx.data"
    source.write_bytes(b"1")
    os.link(source, target)
    place(source, target, freshness.digest_of(source))
    assert target.stat().st_nlink == 1 and target.read_bytes() == b"1"


def test_missing_file_and_damaged_record_are_stale(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    freshness.store(tmp_path, "s", "k", ["a.bin"], {})
    (tmp_path / "a.bin").unlink()
    assert freshness.lookup(tmp_path, "s", "k") is None
    no_result = '{"key": "k", "files": {}, "result": 1}'
    for text in ("", "[]", "3", "\x00", '{"key": "k"}', '{"key": "k", "files": 1}', no_result, "[" * 100_000):
        freshness.record_path(tmp_path, "s").write_text(text)
        assert freshness.lookup(tmp_path, "s", "k") is None


def test_every_step_is_listed_here():
    modules = [importlib.import_module(f"{stages.__name__}.{m.name}") for m in pkgutil.iter_modules(stages.__path__)]
    own = {
        value.__name__
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Step) and hasattr(value, "name")
    }
    assert own == set(NAMES)


@pytest.fixture
def edited(monkeypatch):
    """Replace one of our source files, as `code` sees it."""

    digest = code.file_digest

    def edit(changed: Path | None) -> None:
        monkeypatch.setattr(code, "file_digest", lambda path: b"another" if path == changed else digest(path))
        code.code_digest.cache_clear()

    yield edit
    monkeypatch.undo()
    code.code_digest.cache_clear()


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_a_change_in_any_module_that_a_step_can_run_changes_its_key(step, edited):
    before = step.key
    files, _ = code.closure(type(step).__module__)
    for name, path in files.items():
        edited(path)
        assert step.key != before, name
    edited(None)
    assert step.key == before


@pytest.mark.parametrize(
    ("step", "module"),
    [
        ("Export", "svdq_trt.build.stages.export"),
        ("Export", "svdq_trt.lora.apply"),
        ("Export", "svdq_export.passes.mlp"),
        ("Quantize", "svdq_trt.build.stages.quantize"),
        ("Quantize", "svdq_trt.build.model_source"),
        ("Quantize", "svdq_trt.quantize.gptq"),
        ("Calibrate", "svdq_trt.checkpoint.load"),
        ("TakeQuantized", "svdq_trt.nn.restore"),
        ("TakeQuantized", "svdq_trt.interop.nunchaku_import"),
        ("RunQuantized", "svdq_trt.runtime.lora"),
        ("Plan", "svdq_trt.engine.build"),
    ],
)
def test_what_decides_a_result_is_in_the_closure(step, module):
    """Each of these was once missing from a list kept by hand, or easily could be."""
    files, _ = code.closure(type(STEPS[NAMES.index(step)]).__module__)
    assert module in files


@pytest.mark.parametrize(
    ("step", "libraries"),
    [
        ("Calibrate", {"torch", "diffusers", "safetensors"}),
        ("Quantize", {"torch", "diffusers", "safetensors"}),
        ("Export", {"torch", "diffusers", "onnx", "onnx-ir", "onnxscript"}),
        ("ReferenceExport", {"torch", "diffusers", "onnx", "onnx-ir", "onnxscript"}),
        ("RunQuantized", {"torch", "polygraphy"}),
        ("Compare", {"polygraphy", "matplotlib"}),
    ],
)
def test_an_upgrade_of_a_library_changes_the_key(step, libraries, monkeypatch):
    step = STEPS[NAMES.index(step)]
    versions, before = code.library_versions(type(step).__module__), step.key
    assert libraries <= versions.keys()
    for name in versions:
        monkeypatch.setitem(versions, name, "999")
        assert step.key != before, name
        monkeypatch.undo()
    assert step.key == before


@pytest.mark.parametrize(("step", "name"), [("RunReference", "onnxruntime"), ("Sample", "transformers")])
def test_a_library_that_another_one_loads_counts(step, name, monkeypatch):
    step = STEPS[NAMES.index(step)]
    before = step.key
    monkeypatch.setattr("svdq_trt.build.stage.installed", lambda names: dict.fromkeys(names, "999"))
    assert name in step.loads and step.key != before


def test_another_tensorrt_changes_the_plans_key():
    plan = STEPS[NAMES.index("Plan")]
    assert replace(plan, version="1.8.0").key != plan.key and replace(plan, backend="tensorrt").key != plan.key


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_fields_that_decide_the_result_change_the_key_and_places_do_not(step):
    """Every field is one or the other; a path of its own is refused as a key."""
    assert replace(step, out=Path("/elsewhere/x")).key == step.key
    for one in fields(step):
        value, counts = getattr(step, one.name), one.metadata.get("keyed", True)
        if counts and isinstance(value, str):
            assert replace(step, **{one.name: value + "x"}).key != step.key, one.name
        if counts and isinstance(value, File):
            assert replace(step, **{one.name: replace(value, path=Path("/elsewhere"))}).key == step.key
            assert replace(step, **{one.name: replace(value, id="other")}).key != step.key


def test_a_step_inside_a_stage_counts_with_its_code(edited):
    quantize = STEPS[NAMES.index("Quantize")]
    before = quantize.key
    assert replace(quantize, calibrate=replace(CALIBRATE, skip=("x",))).key != before
    assert replace(quantize, calibrate=replace(CALIBRATE, force=True, out=Path("/x"))).key == before


@pytest.mark.parametrize("step", [s for s in STEPS if s is not CALIBRATE], ids=[n for n in NAMES if n != "Calibrate"])
def test_a_stage_comes_through_the_pipe_as_it_was(step):
    assert from_json(step.to_json()) == step and step.label


def test_a_path_is_no_part_of_a_key():
    @dataclass(frozen=True)
    class Careless(Step):
        name = "careless"
        source: Path
        where: Path = field(default=Path("/"), kw_only=True, metadata=UNKEYED)

    with pytest.raises(TypeError, match="UNKEYED"):
        _ = Careless(OUT, out=OUT).key


def test_to_declare_stages_is_light():
    """The command's process declares stages; what they run on is loaded in theirs."""
    heavy = "{'torch', 'onnx', 'onnxscript', 'diffusers', 'tensorrt_rtx', 'onnxruntime', 'matplotlib', 'polygraphy'}"
    modules = ", ".join(f"{stages.__name__}.{m.name}" for m in pkgutil.iter_modules(stages.__path__))
    program = f"import sys, {modules}\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
