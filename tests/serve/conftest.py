"""The engines and the server that tests of this folder share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from svdq_trt.serve.config import Serving
from svdq_trt.serve.repository import write_model
from tests.harness.serve_toy import write_toy
from tests.harness.triton_server import TritonServer

#: what makes a model.py write down the shapes of x that it is asked for, a line for those that come together
COUNTED = """
from pathlib import Path


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        shapes = [tuple(t.shape()) for request in requests for t in request.inputs() if t.name() == "x"]
        with Path(__file__).with_name("asked").open("a") as file:
            print(shapes, file=file)
        return super().execute(requests)
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory, sdxl_tiny):
    """sdxl-tiny without a plan: sm_90 has none without its GPU, and its ONNX file is what is served.

    SVDQ_TEST_ENGINE names a sdxl-tiny engine folder to use instead.
    """
    if given := os.environ.get("SVDQ_TEST_ENGINE"):
        return Path(given)
    out = tmp_path_factory.mktemp("engines")
    sdxl_tiny.copy(out, "sm_90", check=False)
    return out / "sdxl-tiny-sm_90"


@pytest.fixture(scope="session")
def folder(sdxl_tiny):
    """Engines around sdxl-tiny, from a prompt to a picture.

    SVDQ_TEST_ENGINE names a folder of such engines to use instead.
    """
    given = os.environ.get("SVDQ_TEST_ENGINE")
    return Path(given) if given else sdxl_tiny.pipeline()[0]


@pytest.fixture(scope="session")
def repository(engine, tmp_path_factory):
    """One model per way of serving on a CPU, and those whose backends this server lacks."""
    folder, toys = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("toys")
    write_model(engine, folder, Serving("tiny", "python", "cpu", instances=2))
    merged = write_toy(toys / "toy", ids=True)
    write_model(merged, folder, Serving("merged", "python", "cpu", queue_delay_us=200_000))
    warm = Serving("warm", "python", "cpu", queue_delay_us=0, version=7, warm_up=True)
    version = write_model(merged, folder, warm).folder / "7"
    (version / "model.py").write_text(f"{(version / 'model.py').read_text()}{COUNTED}")
    write_model(write_toy(toys / "bf16", "bfloat16"), folder, Serving("bf16", "python", "cpu", warm_up=True))
    write_model(engine, folder, Serving("tiny-onnx", "onnxruntime", "cpu"))
    write_model(write_toy(toys / "full", backend="tensorrt"), folder, Serving("full", "tensorrt", "gpu"))
    gpu = write_model(write_toy(toys / "gpu"), folder, Serving("session", "python", "gpu"))
    # Triton itself refuses a GPU model where no GPU is. What our model does there, it shows as a CPU model.
    config = gpu.folder / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    return folder


@pytest.fixture(scope="session")
def server(repository, tmp_path_factory):
    with TritonServer(repository, tmp_path_factory.mktemp("server"), ["tiny", "merged", "bf16", "warm"]) as running:
        yield running
