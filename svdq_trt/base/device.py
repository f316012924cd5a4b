"""Which device calibration and the quantizer run on, and how much of the machine they use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from svdq_trt.base.errors import UsageError
from svdq_trt.base.ranks import local_size, size

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def check_device(option: str) -> None:
    """Raise UsageError for a word that ``--device`` does not know."""
    if option not in DEVICES:
        raise UsageError("--device", f"'{option}'", f"one of {', '.join(DEVICES)}")


def resolve_device(option: str) -> str:
    """The device that ``--device`` names here, "cpu" or "cuda"; auto is the GPU where torch sees one.

    Raises:
        UsageError: an unknown word, or cuda where there is no GPU.
    """
    import torch

    check_device(option)
    found = torch.cuda.is_available()
    if option == "cuda" and not found:
        what = "no GPU that torch can use" if torch.backends.cuda.is_built() else "a torch without CUDA"
        raise UsageError("--device", f"cuda with {what}", "auto or cpu")
    return "cuda" if found and option != "cpu" else "cpu"


def torch_device(kind: str, local_rank: int) -> torch.device:
    """The device of one process: a machine's ranks take its GPUs in turn, and share them where there are more ranks."""
    import torch

    return torch.device("cuda", local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device("cpu")


def ranks_on(device: torch.device) -> int:
    """Number of this machine's ranks that `torch_device` assigns to `device`; 1 outside of torchrun."""
    return max(1, sum(torch_device(device.type, rank) == device for rank in range(local_size())))


@contextmanager
def all_threads() -> Iterator[None]:
    """Use all the machine's threads for what rank 0 does while the others wait; torchrun gives each rank one."""
    if size() == 1:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
