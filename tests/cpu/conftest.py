"""One thread: the operations of tiny models are too small to share, and the machine may be busy."""

import ctypes

import emulated
import pytest
import torch


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels on the CPU: emulated.py."""
    headers = emulated.cuda_headers()
    if headers is None:
        pytest.skip("nvcc and its headers are needed")
    return emulated.build(headers, tmp_path_factory.mktemp("emulated"))


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
