"""What the export tests share: a small network with every format, exported."""

from __future__ import annotations

import pytest
import torch

from svdq_export import export_onnx
from tests.harness.export_toy import TOY_DYNAMIC, Toy, toy_inputs


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The f16 network, what was written, and the progress told meanwhile."""
    path = tmp_path_factory.mktemp("onnx") / "toy.onnx"
    stages = []
    net = Toy(torch.float16).eval()
    info = export_onnx(
        net,
        toy_inputs(torch.float16),
        TOY_DYNAMIC,
        ["out"],
        path,
        progress=lambda *event: stages.append(event),
    )
    return net, info, stages
