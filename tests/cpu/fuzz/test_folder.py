"""Engine folders with a damaged manifest: every command that reads one says in one sentence what is wrong, or works."""

from __future__ import annotations

import contextlib
import json
import random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt import calibrate, cli
from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.pipeline_file import GraphEntry, PipelineFile
from svdq_trt.base.errors import EXIT_BUG, IncompleteError, SvdqError
from svdq_trt.build import finish
from svdq_trt.checkpoint import identify_weights, load
from svdq_trt.contract.formats import INT4
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import Backend
from svdq_trt.evaluate import report
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.run import quantize_model
from svdq_trt.runtime import opening
from tests.cpu.runtime.conftest import FakeTensorRT
from tests.cpu.runtime.test_onnx_session import write_model
from tests.harness.damage import damaged, tries
from tests.harness.manifests import file_entry, quantized_entry, tensor_entry, write_manifest

SPEC = get_model("pixart-tiny")
SKIP = ("transformer_blocks.1.*", "*.attn2.*", "*.ff.*")  # two nodes are left


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine folder with every part, its files, and the shared folder that a report reads."""
    folder = tmp_path_factory.mktemp("engines") / "pixart-tiny-sm_89"
    folder.mkdir()
    module = load(SPEC, random_seed=0)
    groups = SPEC.groups(module, SKIP)
    calibration = calibrate.collect(module, SPEC, groups, samples=1, height=64, width=64)
    collected = folder.parent / "pixart-tiny-shared" / "calib.safetensors"
    calibration.save(collected)
    artifact, quiet = folder / "svdq.safetensors", lambda *_: None
    quantize_model(module, SPEC, groups, calibration, INT4, 16, PRESETS["fast"], artifact, "key", quiet, skip=SKIP)
    for name in ("model.plan", "libplugin.so", "accuracy.png"):
        (folder / name).write_bytes(name.encode())
    onnx = write_model(folder / "model.onnx")
    (folder / "model.onnx.data").write_bytes(b"")
    data = file_entry(folder / "model.onnx.data")
    digest = identify_weights(SPEC, random_seed=0).digest
    range_ = {"min": 1, "opt": 2, "max": 4}
    write_manifest(
        folder,
        model=SPEC.name,
        backend={"name": "tensorrt-rtx", "version": "1"},
        plugin=file_entry(folder / "libplugin.so", version="1.0.0", platform="linux-x86_64", archs=["sm_89"]),
        plan=file_entry(folder / "model.plan"),
        onnx=file_entry(onnx) | {"data": data},
        artifact=file_entry(artifact),
        inputs=[tensor_entry("x", "float16", (1, 2, 4), (8, 8, 8)), tensor_entry("t", "float32", (1, 2, 4), (1, 1, 1))],
        outputs=[tensor_entry("y", "float16", (1, 2, 4), (8, 8, 8))],
        quantized=[quantized_entry(member, g.node) for g in groups for member in g.members],
        kept_16bit=[{"name": "proj_out", "reason": "a reason"}],
        allocation={"budget_bytes": 9, "gains": "scan.json", "bytes": 8, "error_db": 20.5, "kept": ["a"]},
        fp16_weight_bytes=10,
        quantized_weight_bytes=5,
        accuracy={
            "against": "16 bit",
            "sizes": {"batch": 1},
            "seed": 1,
            "mean_layer_sqnr_db": 20.5,
            "outputs": [{"name": "y", "sqnr_db": 20.5, "cosine": 0.99, "max_abs": 0.5, "ref_max_abs": 3.0}],
            "plot": "accuracy.png",
            "plot_sha256": file_entry(folder / "accuracy.png")["sha256"],
        },
        config={
            "checkpoint": None,
            "random_weights": 0,
            "skip": list(SKIP),
            "quantized": None,
            "preset": "fast",
            "calibration": None,
            "sampling": None,
            "batch": range_,
            "height": None,
        },
        origin={
            "date": "2026-11-29T18:00:00Z",
            "platform": "Linux",
            "code": "0",
            "weights": {"source": "s", "digest": digest, "files": [file_entry(onnx)]},
            "quantized": "",
            "calibration": {"source": "synthetic", "digest": "", "collected": file_entry(collected)["sha256"]},
            "sensitivity": "",
        },
    )
    graph = GraphEntry.of(".", manifest.read(folder))
    files = tuple(FileEntry(**file_entry(folder / name)) for name in ("model.plan", "libplugin.so"))
    pipeline = PipelineFile(pipeline="PixArtSigmaPipeline", engines={"transformer": graph}, files=files)
    pipeline_file.write(folder, pipeline)
    return folder


@pytest.fixture
def commands(engine, monkeypatch, tmp_path):
    """Everything that reads an engine folder, as a call that returns an exit code. Nothing is drawn or compiled."""
    trt = FakeTensorRT()
    trt.__version__ = "1"
    library = plugin_lib.PluginLibrary(engine / "libplugin.so", "", "1.0.0", "linux-x86_64", (89,))

    def no_backend(choice, arch):
        raise IncompleteError(f"sm_{arch}", "none", "one")

    monkeypatch.setattr(plugin_lib, "find", lambda path=None: library)
    monkeypatch.setattr(plugin_lib, "load_into", lambda module, path: None)
    monkeypatch.setattr(opening, "local_arch", lambda device: 89)
    monkeypatch.setattr(opening, "on_gpu", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(opening, "available", lambda name: [Backend(name, trt)])
    monkeypatch.setattr(finish, "select", no_backend)
    for name in ("layers", "sizes", "alphas", "ranks", "split", "rank_sweep", "one_layer"):
        monkeypatch.setattr(report.figures, name, lambda *_: b"")
    cheap = SimpleNamespace(split={"activations": 1.0, "weights": 1.0, "both": 1.0})
    monkeypatch.setattr(report, "analyse", lambda node, *_: SimpleNamespace(node=node, **vars(cheap)))
    monkeypatch.setattr(report, "error_split", lambda *_: cheap.split)

    def opened():
        try:
            opening.open_engine(engine, allow_host_code=True)
        except SvdqError as error:
            cli.main.__globals__["_refused"](error, False)
            return error.exit_code
        return 0

    def run(*words):
        return lambda: cli.main([str(word) for word in words])

    model, repository, given = engine / "model.onnx", tmp_path / "models", tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2, 8), "t": torch.ones(2, 1)}, given)
    cpu = ("--runtime", "onnx", "--onnx-device", "cpu")
    return {
        "verify": run("verify", engine),
        "report": run("report", engine, "--layers", "1"),
        "finish": run("finish", engine),
        "diff": run("diff", engine, "--against", model, *cpu),
        "diff --inputs": run("diff", engine, "--against", model, "--inputs", given, *cpu),
        "triton": run(
            "triton", engine, "--repository", repository, "--variant", "python", "--device", "cpu", "--name", "m"
        ),
        "open": opened,
    }


def test_every_command_works_on_the_whole_folder(commands, capsys):
    """So that what the damaged ones say is about the damage."""
    codes = {name: command() for name, command in commands.items()}
    said = capsys.readouterr().err
    assert codes == {"verify": 0, "report": 0, "finish": 4, "diff": 1, "diff --inputs": 0, "triton": 0, "open": 0}, said
    assert "input 'x'" in said  # its graph is not the model's


def test_damaged_manifests(engine, commands, capsys):
    path, rng, codes = engine / manifest.NAME, random.Random("manifests"), []
    whole = path.read_text()
    try:
        for count in range(tries(300)):
            path.write_bytes(damaged(rng, whole))
            name = rng.choice(list(commands))
            codes.append(commands[name]())
            printed = capsys.readouterr()
            lines = [line for line in printed.err.splitlines() if not line.startswith("svdq-trt: running")]
            where = f"{name}, {count}: {path.read_bytes()[:300]!r}"
            assert codes[-1] != EXIT_BUG, f"{where}: {lines}"
            assert codes[-1] == 0 or (len(lines) == 1 and len(lines[0]) < 3000), f"{where}: {lines}"
            assert "".join(lines).isprintable() and "".join(printed.out.splitlines()).isprintable(), where
    finally:
        path.write_text(whole)
    assert codes.count(0) > len(codes) / 50 and len(codes) - codes.count(0) > len(codes) / 4


def test_damaged_pipeline_files(engine, commands, capsys):
    path, rng, codes = engine / pipeline_file.NAME, random.Random("pipelines"), []
    whole = path.read_text()
    try:
        for count in range(tries(100)):
            path.write_bytes(damaged(rng, whole))
            codes.append(commands["verify"]())
            lines = capsys.readouterr().err.splitlines()
            where = f"{count}: {path.read_bytes()[:300]!r}: {lines}"
            assert codes[-1] != EXIT_BUG and len(lines) == (codes[-1] != 0) and "".join(lines).isprintable(), where
    finally:
        path.write_text(whole)
    assert codes.count(0) > len(codes) / 50 and len(codes) - codes.count(0) > len(codes) / 4


def test_whatever_is_read_is_written_again(engine, tmp_path):
    """A manifest that was accepted is one that a build could have written: finish rewrites it."""
    rng, whole, accepted = random.Random("again"), (engine / manifest.NAME).read_text(), 0
    for _ in range(tries(300)):
        (tmp_path / manifest.NAME).write_bytes(damaged(rng, whole))
        try:
            data = manifest.read(tmp_path)
        except SvdqError:
            continue
        accepted += 1
        manifest.write(tmp_path, data)
        assert manifest.read(tmp_path) == data and json.loads((tmp_path / manifest.NAME).read_text())
    assert accepted > tries(300) / 50
