"""What is refused before a plan is deserialized, what is not, and where the plugin's code comes from."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from svdq_trt.artifact import manifest
from svdq_trt.base import files
from svdq_trt.base.errors import ArtifactError, SvdqError, UnsupportedError, UsageError
from svdq_trt.engine.last_errors import LastErrors
from svdq_trt.runtime import opening
from svdq_trt.runtime.opening import open_engine
from tests.harness.manifests import write_manifest


def change(folder, part, **values):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    if part:
        data[part] = {k: v for k, v in (data[part] | values).items() if v is not None}
    else:
        data |= values
    path.write_text(json.dumps(data))


def refused(trt, folder, kind, text, **options):
    with pytest.raises(kind) as caught:
        open_engine(folder, **options)
    assert text in str(caught.value)
    assert trt.deserialized == [] and trt.loaded == []


def test_good_folder_is_deserialized_once_with_the_installed_library(trt, folder):
    opened = open_engine(folder)
    assert opened.engines == (trt.engine,) and opened.manifest.model == "sdxl-tiny"
    assert trt.deserialized == [((folder / "model.plan").read_bytes(), False)]
    assert trt.loaded == ["installed.so"]


def test_what_engines_share_is_made_by_one_thread(trt, folder, monkeypatch):
    alone = threading.Lock()

    def load_into(module, path):
        assert alone.acquire(blocking=False), "two at once"
        time.sleep(0.05)
        alone.release()

    monkeypatch.setattr(opening.plugin_lib, "load_into", load_into)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_engine(folder), range(4)))
    assert len({id(one.logger) for one in found}) == 1


def test_a_thread_is_told_its_own_errors():
    errors = LastErrors()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(errors.add, "of an engine in another thread").result()
        assert str(errors) == "of an engine in another thread"
        errors.add("of this thread's engine")
        pool.submit(errors.add, "svdq: of the other").result()
        assert str(errors) == "of this thread's engine"
        assert pool.submit(str, errors).result() == "svdq: of the other"


def test_host_code_of_the_plan_needs_consent(trt, folder):
    """TensorRT-RTX 1.6 loads a plan's library without, so such a plan does not reach it."""
    change(folder, "plugin", embedded=True)
    refused(trt, folder, UnsupportedError, "a plan that carries machine code, its plugin library, want a plan without")
    open_engine(folder, allow_host_code=True)
    assert trt.deserialized[0][1] is True and trt.loaded == []


def test_library_beside_the_plan_needs_consent_too(trt, folder):
    open_engine(folder)
    open_engine(folder, allow_host_code=True)
    assert trt.loaded == ["installed.so", "libsvdq_trt_plugin.so"]
    assert [allowed for _, allowed in trt.deserialized] == [False, False]


def test_library_beside_the_plan_is_digested_before_it_is_loaded(trt, folder):
    (folder / "libsvdq_trt_plugin.so").write_bytes(b"library of the f0lder")
    refused(trt, folder, ArtifactError, "another SHA-256", allow_host_code=True)


def test_the_library_beside_a_plan_is_not_needed_where_one_is_installed(trt, folder):
    (folder / "libsvdq_trt_plugin.so").unlink()
    assert open_engine(folder).engines == (trt.engine,)


def test_other_gpu(trt, folder):
    refused(trt, folder, ArtifactError, "a plan for sm_89, want one for sm_120", device=1)
    open_engine(folder, device=1, allow_arch_mismatch=True)
    assert len(trt.deserialized) == 1


def test_no_gpu(trt, folder):
    refused(trt, folder, UnsupportedError, "CUDA device 7: not found", device=7, allow_arch_mismatch=True)


def test_other_release_of_tensorrt(trt, folder):
    trt.__version__ = "9.8.8"
    refused(trt, folder, UnsupportedError, "tensorrt-rtx 9.8.8 is installed, want 9.8.7")


def test_tensorrt_not_installed(trt, folder, monkeypatch):
    monkeypatch.setattr(opening, "available", lambda name: [])
    refused(trt, folder, UnsupportedError, "no Python module tensorrt_rtx, want tensorrt-rtx 9.8.7. pip install")


@pytest.mark.parametrize("backend", [{"name": "onnx"}, {"version": 10}, {"name": None}])
def test_unknown_backend(trt, folder, backend):
    change(folder, "backend", **backend)
    refused(trt, folder, ArtifactError, "manifest.json: backend")


def test_another_kind_of_machine(trt, folder, monkeypatch):
    change(folder, "plugin", platform="linux-x86_64")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    text = "a plan and its plugin library for linux-x86_64, want for linux-aarch64, this machine. Install svdq-trt here"
    refused(trt, folder, UnsupportedError, text)
    refused(trt, folder, UnsupportedError, "svdq-trt finish", allow_host_code=True)
    assert open_engine(folder, allow_arch_mismatch=True).engines == (trt.engine,)


def test_other_plugin_version(trt, folder):
    change(folder, "plugin", version="0.9.0")
    refused(trt, folder, ArtifactError, "a plan of plugin version 0.9.0, want version 1.0.0")


def test_missing_plugin_is_our_message_not_tensorrts(trt, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(opening.plugin_lib, "find", trt.real_find)
    monkeypatch.setenv("SVDQ_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    refused(
        trt, folder, ArtifactError, "none.so, want the built plugin library. Run pip install . in the source folder"
    )
    (tmp_path / "none.so").write_text("no library")
    refused(trt, folder, ArtifactError, "want a plugin library of svdq-trt")


def test_damaged_plan(trt, folder):
    plan = folder / "model.plan"
    good = plan.read_bytes()
    plan.write_bytes(good[:-1])
    refused(trt, folder, ArtifactError, f"{len(good) - 1} bytes, want {len(good)} bytes")
    plan.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(trt, folder, ArtifactError, "another SHA-256")
    plan.unlink()
    refused(trt, folder, ArtifactError, "missing")


@pytest.mark.parametrize("at", [0, 5000, 10239])  # of 10240 bytes: in the first chunk, the second, the last
def test_damaged_chunk(trt, folder, monkeypatch, at):
    monkeypatch.setattr(files, "CHUNK", 4096)
    plan = folder / "model.plan"
    good = bytearray(plan.read_bytes())
    digests = files.Digests()
    digests.update(good)
    change(folder, "plan", chunks=digests.chunks)
    assert len(digests.chunks) == 3 and open_engine(folder).engines == (trt.engine,)
    trt.deserialized.clear(), trt.loaded.clear()
    change(folder, "plan", chunks=digests.chunks[:2])
    refused(trt, folder, ArtifactError, "another SHA-256")
    change(folder, "plan", chunks=digests.chunks)
    good[at] ^= 1
    plan.write_bytes(good)
    refused(trt, folder, ArtifactError, "another SHA-256")


def test_weight_budget(trt, folder):
    refused(trt, folder, UsageError, "weight_budget: -1 bytes, want 0 or more", weight_budget=-1)
    text = "weight_budget: an engine that was built without --weight-streaming, want one that was built with it. Build"
    refused(trt, folder, UnsupportedError, text, weight_budget=0)
    change(folder, "plan", weight_streaming=True)
    for budget, taken in ((0, 0), (70, 70), (200, 100)):
        trt.engine = SimpleNamespace(streamable_weights_size=100)
        open_engine(folder, weight_budget=budget)
        assert trt.engine.weight_streaming_budget_v2 == taken


def test_manifest_without_a_digest_is_no_licence(trt, folder):
    change(folder, "plan", sha256=None)
    refused(trt, folder, ArtifactError, "manifest.json: plan.sha256: missing")


def test_plan_outside_the_folder(trt, folder):
    (folder / "model.plan").rename(folder.parent / "model.plan")
    change(folder, "plan", file="../model.plan")
    refused(trt, folder, ArtifactError, "missing")


def test_incomplete_build(trt, folder):
    change(folder, "", plan={})
    refused(trt, folder, ArtifactError, f"sm_89 GPU and TensorRT: svdq-trt finish {folder}")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 2}'])
def test_broken_manifest(trt, folder, text):
    (folder / "manifest.json").write_text(text)
    refused(trt, folder, ArtifactError, "manifest.json")


def test_missing_folder(trt, tmp_path):
    refused(trt, tmp_path / "none", ArtifactError, "cannot be read")


def test_refusal_by_tensorrt_carries_its_message(trt, folder):
    trt.engine = None
    with pytest.raises(SvdqError, match="plan is not mine, want a plan that TensorRT loads"):
        open_engine(folder)
    with pytest.raises(SvdqError) as caught:
        open_engine(folder, allow_host_code=True)
    assert "allow_host_code" not in str(caught.value)


def test_a_part_is_built_again_with_its_pipeline(tmp_path):
    write_manifest(tmp_path, model="CLIPTextModel", config={"model": "sdxl", "pipeline": "./sdxl base"})
    with pytest.raises(ArtifactError, match=r"svdq-trt build --model sdxl --arch sm_120 --pipeline '\./sdxl base'"):
        manifest.verify(tmp_path, 120)
