"""10,000 launches on two streams with changing M: every result compared, no memory lost."""

from __future__ import annotations

import itertools

import pytest
from kernel_calls import OK, Library

from tests.harness.calls import bind, result
from tests.harness.linears import random_linear

LAUNCHES = 10_000
NAMES = ("int4", "w4a8", "nvfp4", "w4a16")
TOKENS = (1, 300, 16, 77, 17, 130, 5)  # few and many tokens alternate: every choice of tile
GRANULE = 2 << 20  # bytes; what the driver maps at a time


@pytest.mark.parametrize("name", NAMES)
def test_many_launches_on_two_streams(svdq: Library, name: str) -> None:
    import torch

    streams = [torch.cuda.Stream() for _ in range(2)]
    linears = [random_linear(name, "bf16", m, 264, 320, 32) for m in TOKENS]
    calls = [[bind(svdq, linear) for linear in linears] for _ in streams]
    first = []
    for one, other in zip(*calls, strict=True):
        one.run(), other.run()
        result(one), result(other)
        first.append(one.y.view(torch.int16).clone())
    wrong = [torch.zeros((), dtype=torch.bool, device="cuda") for _ in streams]

    def launch(stream: int, which: int) -> None:
        call = calls[stream][which]
        with torch.cuda.stream(streams[stream]):
            assert call.launch(streams[stream].cuda_stream) == OK
            wrong[stream].logical_or_((call.y.view(torch.int16) != first[which]).any())

    order = itertools.cycle(itertools.product(range(2), range(len(TOKENS))))
    for _ in range(4 * len(TOKENS)):  # torch's own allocations settle
        launch(*next(order))
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    for _ in range(LAUNCHES // len(NAMES)):
        launch(*next(order))
    torch.cuda.synchronize()
    assert not any(bool(w) for w in wrong), "a result differs from the first one of the same operands"
    assert free - torch.cuda.mem_get_info()[0] < GRANULE, "device memory was lost"
