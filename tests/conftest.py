"""What a test needs is the folder it is in: cpu anywhere, trt TensorRT and the plugin, gpu a GPU, e2e whole builds,
serve a tritonserver.

A missing need is a visible skip. ``SVDQ_REQUIRE=gpu,trt`` turns such skips into failures.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDS = ("gpu", "trt", "serve")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder; skip, or fail where the need is required."""
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
