"""An engine folder whose manifest, digests and sizes are real, and a TensorRT that records being asked."""

from __future__ import annotations

import contextlib
import hashlib
import types
from pathlib import Path
from typing import Any

import pytest

from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import Backend
from svdq_trt.runtime import opening
from tests.harness.manifests import file_entry, write_manifest

VERSION = "9.8.7"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FakeTensorRT(types.ModuleType):
    """Records each deserialization with the flag it ran under; gives back `engine`."""

    def __init__(self) -> None:
        super().__init__("tensorrt_rtx")
        self.__version__ = VERSION
        self.deserialized: list[tuple[bytes, bool]] = []
        self.engine: Any = object()
        fake = self

        class ILogger:
            ERROR = 1

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.engine_host_code_allowed = False
                self.logger = logger

            def deserialize_cuda_engine(self, plan: Any) -> Any:
                fake.deserialized.append((bytes(plan), self.engine_host_code_allowed))
                if fake.engine is None:
                    self.logger.log(1, "plan is\nnot mine")
                return fake.engine

        self.ILogger, self.Runtime = ILogger, Runtime


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """An sm_89 GPU, TensorRT-RTX 9.8.7 and plugin library 1.0.0 installed."""
    fake = FakeTensorRT()
    fake.loaded, fake.real_find = [], plugin_lib.find
    installed = tmp_path / "installed.so"
    installed.write_bytes(b"installed library")

    def find(path: Path | None = None) -> plugin_lib.PluginLibrary:
        path = path or installed
        return plugin_lib.PluginLibrary(path, digest(path), "1.0.0", plugin_lib.this_platform(), (89,))

    monkeypatch.setattr(opening, "local_arch", lambda device: {0: 89, 1: 120}.get(device))
    monkeypatch.setattr(opening, "on_gpu", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(opening, "available", lambda name: [Backend(name, fake)])
    monkeypatch.setattr(plugin_lib, "find", find)
    monkeypatch.setattr(plugin_lib, "load_into", lambda module, path: fake.loaded.append(path.name))
    return fake


@pytest.fixture
def folder(tmp_path):
    """A complete sm_89 engine folder; the plugin library lies beside its plan."""
    out = tmp_path / "tiny-sm_89"
    out.mkdir()
    plan, library = out / "model.plan", out / "libsvdq_trt_plugin.so"
    plan.write_bytes(bytes(range(256)) * 40)
    library.write_bytes(b"library of the folder")
    write_manifest(
        out,
        backend={"name": "tensorrt-rtx", "version": VERSION},
        plugin={"file": library.name, "version": "1.0.0", "sha256": digest(library)},
        plan=file_entry(plan),
    )
    return out
