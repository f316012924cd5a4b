"""What a test needs is the folder it is in: cpu anywhere, trt TensorRT and the plugin, gpu a GPU, e2e whole builds,
serve a tritonserver.

A missing need is a visible skip. ``SVDQ_REQUIRE=gpu,trt`` turns such skips into failures.

The order is that of the longest: whole builds first, so that pytest-xdist's workers end together. Tests that share what
takes long to make are a group of one worker.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from builds import SharedEngines

HERE = Path(__file__).parent
NEEDS = ("gpu", "trt", "serve")
#: Tests of one group are one worker's; the first two have session fixtures, of GPUs there may be one.
GROUPS = {"cpu/interop": "interop", "cpu/lora": "lora", "gpu": "gpu", "trt": "gpu"}


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
        sys.path.append(str(HERE / "serve"))
        from triton_server import missing

        return missing()
    return ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile: by file as there, but by GROUPS where they say so, and in our order."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(config.rootpath, nodeid.split("::")[0]).relative_to(HERE)
            return next((group for folder, group in GROUPS.items() if path.is_relative_to(folder)), str(path))

    config.option.loadscopereorder = False
    return InOrder(config, log)


def _turn(item: pytest.Item) -> int:
    """Place in the order: who builds the shared engines, other builds, who needs the shared ones, the rest."""
    path = item.path.relative_to(HERE)
    if path.parts[0] not in ("e2e", "serve"):
        return 3
    if path.name == "test_tiny.py":
        return 0
    return 2 if "sdxl_tiny" in getattr(item, "fixturenames", ()) else 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order; mark by folder; skip, or fail where the need is required."""
    items.sort(key=_turn)
    required = set(filter(None, os.environ.get("SVDQ_REQUIRE", "").split(",")))
    reasons = {need: _missing(need) for need in NEEDS}
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        needs = {"gpu": ["gpu"], "trt": ["trt"], "e2e": ["trt"], "serve": ["serve"]}.get(folder, [])
        for need in (folder,) if folder in (*NEEDS, "e2e") else ():
            item.add_marker(need)
        for need in needs:
            if reasons[need] and need not in required:
                item.add_marker(pytest.mark.skip(reason=reasons[need]))
