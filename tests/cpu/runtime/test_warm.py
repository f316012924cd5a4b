"""Kernels that are compiled ahead, with a compiler that only waits."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from svdq_trt import cli
from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.pipeline_file import GraphEntry, PipelineFile
from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.build import finish, run, summary
from svdq_trt.build.run import Built
from svdq_trt.cli import warm as command
from svdq_trt.engine import gpu
from svdq_trt.runtime.cache import cache_path
from svdq_trt.runtime.choice import Opening
from svdq_trt.runtime.warm import warm
from tests.harness.fake_engine import GPU, MODULE_RTX, Engine, HostMemory, on_host
from tests.harness.manifests import complete, write_manifest

PIECES = ("head.plan", "tail.plan", "end.plan")


class Compiled(Engine):
    """Its context is there once those of as many engines as `together` are being made."""

    together = threading.Barrier(1)

    def create_execution_context(self, how):
        self.together.wait(timeout=5)
        return super().create_execution_context(how)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A function: engine folders, of as many plans each, whose contexts are made together."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    memory, budgets = HostMemory(), {}

    def open_engine(folder, weight_budget, **_):
        budgets[folder] = weight_budget
        plans = tuple(SimpleNamespace(file=name, sha256=name) for name in counts[folder])
        engines = tuple(Compiled(folder / "model.onnx", memory) for _ in plans)
        return SimpleNamespace(
            manifest=complete(),
            seconds={},
            backend=SimpleNamespace(module=MODULE_RTX, version="1"),
            folder=folder,
            plans=plans,
            engines=engines,
            logger=SimpleNamespace(errors=""),
        )

    counts = {}
    on_host(monkeypatch, memory, open_engine)

    def made(**plans):
        for name, files in plans.items():
            folder = tmp_path / name
            counts[folder] = files
            folder.mkdir()
            onnx.save(model, folder / "model.onnx")
            write_manifest(folder)
        monkeypatch.setattr(Compiled, "together", threading.Barrier(sum(map(len, plans.values()))))
        return tmp_path, budgets

    return made


def test_the_next_start_finds_what_was_compiled(folders, capsys):
    root, budgets = folders(unet=("model.plan",))
    unet = root / "unet"
    (seconds,) = warm(unet, Opening()).values()
    assert seconds is not None and cache_path(unet, GPU, "1", "model.plan").is_file()
    assert warm(unet, Opening()) == {unet: None} and budgets == {unet: None}
    write_manifest(unet, plan={"file": "model.plan", "bytes": 4, "sha256": "", "weight_streaming": True})
    options = SimpleNamespace(engine=unet, device=0, allow_host_code=False, allow_arch_mismatch=False)
    assert command.run(options) == 0 and budgets == {unet: 0}
    assert capsys.readouterr().out == f"{unet}: the kernels were there\n"


def test_pieces_are_compiled_side_by_side(folders):
    root, _ = folders(flux=PIECES)
    (seconds,) = warm(root / "flux", Opening()).values()
    assert seconds is not None and len(list((root / "flux").glob("runtime-cache-*.bin"))) == 3


def test_engines_of_a_pipeline_are_compiled_side_by_side(folders):
    root, _ = folders(flux=PIECES, **{"flux/vae_decoder": ("model.plan",), "flux/text_encoder": ("model.plan",)})
    parts = {"transformer": ".", "vae_decoder": "vae_decoder", "text_encoder": "text_encoder"}
    entries = {name: GraphEntry(folder, "", "") for name, folder in parts.items()}
    pipeline_file.write(root / "flux", PipelineFile(pipeline="FluxPipeline", engines=entries, files=()))
    found = warm(root / "flux", Opening())
    assert sorted(found) == sorted(root / "flux" / folder for folder in parts.values())
    assert None not in found.values()


def test_a_folder_that_keeps_nothing_is_an_error(folders):
    root, _ = folders(unet=("model.plan",))
    cache_path(root / "unet", GPU, "1", "model.plan").mkdir()  # no file can be put there
    with pytest.raises(ArtifactError, match="nothing can be written there"):
        warm(root / "unet", Opening())


def test_full_tensorrt_has_nothing_to_compile(folders):
    root, _ = folders(unet=("model.plan",))
    write_manifest(root / "unet", backend={"name": "tensorrt", "version": "1"})
    with pytest.raises(UnsupportedError, match="a plan of tensorrt, want one of tensorrt-rtx"):
        warm(root / "unet", Opening())


@pytest.mark.parametrize("arch", [89, 90, None])
def test_a_build_compiles_for_this_machines_gpu_alone(folders, monkeypatch, capsys, arch):
    """By `build`, and by `finish`; --no-warm keeps both from it. The engine is for sm_89."""
    root, _ = folders(unet=("model.plan",))
    unet, told = root / "unet", []
    built = Built(SimpleNamespace(folder=unet), manifest.read(unet), None)
    monkeypatch.setattr(gpu, "local_arch", lambda: arch)
    monkeypatch.setattr(run, "build", lambda config: [built])
    monkeypatch.setattr(summary, "print_summary", lambda built: None)
    monkeypatch.setattr(finish, "finish", lambda folder, backend: folder / "model.plan")
    for words in (["build", "--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0"], ["finish", str(unet)]):
        assert cli.main([*words, "--no-warm"]) == 0 and not list(unet.glob("runtime-cache-*"))
        assert cli.main(words) == 0
        told.append(capsys.readouterr().out.count("compiled in"))
        for kept in unet.glob("runtime-cache-*"):
            kept.unlink()
    assert told == ([1, 1] if arch == 89 else [0, 0])


def test_a_build_whose_kernels_cannot_be_kept_is_one_all_the_same(folders, monkeypatch, capsys):
    root, _ = folders(unet=("model.plan",))
    cache_path(root / "unet", GPU, "1", "model.plan").mkdir()
    monkeypatch.setattr(gpu, "local_arch", lambda: 89)
    command.warm_if_here(root / "unet")
    assert "The kernels were not compiled, the first start does that: " in capsys.readouterr().err


def test_a_build_beside_a_program_that_holds_the_gpus_memory_is_one_all_the_same(folders, monkeypatch, capsys):
    root, _ = folders(unet=("model.plan",))

    def refuse(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere")

    monkeypatch.setattr(Opening, "open", refuse)
    monkeypatch.setattr(gpu, "local_arch", lambda: 89)
    command.warm_if_here(root / "unet")
    assert capsys.readouterr().err.endswith("the first start does that: CUDA error: out of memory\n")
