"""The number of layers that are quantized at once."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.base.device import ranks_on
from svdq_trt.quantize.workers import gpu_workers


@pytest.mark.parametrize(
    ("free", "ranks", "want"), [(80e9, 1, 4), (80e9, 2, 4), (80e9, 4, 2), (80e9, 16, 1), (20e9, 1, 2), (1e9, 1, 1)]
)
def test_ranks_on_one_gpu_share_its_memory(free, ranks, want):
    assert gpu_workers(int(free), ranks) == want


def test_ranks_of_a_machine_are_counted_by_the_device_they_get(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = [torch.device("cuda", index) for index in range(2)]
    assert [ranks_on(gpu) for gpu in (*gpus, torch.device("cuda"))] == [1, 1, 1]  # no torchrun
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "10"), ("LOCAL_WORLD_SIZE", "5")):
        monkeypatch.setenv(name, value)
    assert [ranks_on(gpu) for gpu in gpus] == [3, 2] and ranks_on(torch.device("cpu")) == 5
