"""The kernels on the CPU, compiled once for all tests of this folder."""

import pytest
from kernel_calls import Library

from tests.harness import emulated


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The C API over them."""
    headers = emulated.cuda_headers()
    if headers is None:
        pytest.skip("nvcc and its headers are needed")
    return emulated.build(headers, tmp_path_factory.mktemp("emulated"))
