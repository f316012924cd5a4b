"""What a test needs is the folder it is in: cpu anywhere, trt TensorRT and the plugin, gpu a GPU, e2e whole builds,
serve a tritonserver.

A missing need is a visible skip. ``SVDQ_REQUIRE=gpu,trt`` turns such skips into failures.

The longest come first: whole builds, then the folders that share fixtures, so that pytest-xdist's workers end together.
A group (`--dist loadgroup`) is a file or such a folder, and one worker's.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from svdq_trt.base.garbage import no_collections
from tests.harness.builds import SharedEngines

HERE = Path(__file__).parent
NEEDS = ("gpu", "trt", "serve")
#: folder or file -> group: those in cpu/ and serve/ share what takes long, session fixtures or traces of models, and of
#: GPUs there may be one
GROUPS = {
    **{f"cpu/{name}": name for name in ("cpp", "emulation", "interop", "lora")},
    "gpu": "gpu",
    "trt": "gpu",
    **{f"cpu/models/test_{name}.py": "traces" for name in ("recipe", "derive")},
    **{f"serve/test_{name}.py": "pipelines" for name in ("pipeline", "bench_serving")},
}


@pytest.fixture(scope="session")
def sdxl_tiny(tmp_path_factory: pytest.TempPathFactory) -> SharedEngines:
    """Engines to copy."""
    base = tmp_path_factory.getbasetemp()  # under xdist a worker's own, in that of the run
    return SharedEngines((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sdxl-tiny")


def _missing(need: str) -> str:
    """Why `need` is not met here; empty when it is."""
    if need == "trt":
        return "" if importlib.util.find_spec("tensorrt_rtx") else "needs tensorrt_rtx"
    if need == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "needs a CUDA GPU"
    if need == "serve":
        from tests.harness.triton_server import missing

        return missing()
    return ""


def _group(path: Path) -> str:
    """The group of a file, relative to this folder."""
    return next((group for folder, group in GROUPS.items() if path.is_relative_to(folder)), str(path))


def _turn(item: pytest.Item) -> int:
    """Place in the order: who builds the shared engines, other builds, who needs the shared ones, folders, the rest."""
    path = item.path.relative_to(HERE)
    if path.parts[0] not in ("e2e", "serve"):
        return 3 if _group(path) in GROUPS.values() else 4
    if path.name == "test_tiny.py":
        return 0
    return 2 if "sdxl_tiny" in getattr(item, "fixturenames", ()) else 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Libraries and tests stay: they are looked through for garbage neither now nor after each test."""
    with no_collections():
        found = yield
    gc.freeze()
    return found


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which writes groups into the items' names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order; group; mark by folder; skip, or fail where the need is required."""
    items.sort(key=_turn)
    required = set(filter(None, os.environ.get("SVDQ_REQUIRE", "").split(",")))
    reasons = {need: _missing(need) for need in NEEDS}
    for item in items:
        path = item.path.relative_to(HERE)
        folder = path.parts[0]
        item.add_marker(pytest.mark.xdist_group(_group(path)))
        needs = {"gpu": ["gpu"], "trt": ["trt"], "e2e": ["trt"], "serve": ["serve"]}.get(folder, [])
        for need in (folder,) if folder in (*NEEDS, "e2e") else ():
            item.add_marker(need)
        for need in needs:
            if reasons[need] and need not in required:
                item.add_marker(pytest.mark.skip(reason=reasons[need]))
