"""Which device calibration and the quantizer run on, and how much of the machine."""

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
    """What ``--device`` means here, "cpu" or "cuda": auto is the GPU where torch sees one.

    Raises:
        UsageError: another word, or cuda where there is none.
    """
    import torch

    check_device(option)
    found = torch.cuda.is_available()
    if option == "cuda" and not found:
        what = "no GPU that torch can use" if torch.backends.cuda.is_built() else "a torch without CUDA"
        raise UsageError("--device", f"cuda with {what}", "auto or cpu")
    return "cuda" if found and option != "cpu" else "cpu"


def torch_device(kind: str, local_rank: int) -> torch.device:
    """The device of one process: ranks of a machine take its GPUs in turn, and share them where they are more."""
    import torch

    return torch.device("cuda", local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device("cpu")


def ranks_on(device: torch.device) -> int:
    """How many ranks of this machine `torch_device` sends to that device of this one; 1 outside of torchrun."""
    return max(1, sum(torch_device(device.type, rank) == device for rank in range(local_size())))


@contextmanager
def all_threads() -> Iterator[None]:
    """For what rank 0 does while the others wait: the machine's threads, where torchrun gives each rank one."""
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
