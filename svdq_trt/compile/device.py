"""Which device calibration and the quantizer run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdq_trt.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def check_device(option: str) -> None:
    """Raise UsageError for a word that ``--device`` does not know."""
    if option not in DEVICES:
        raise UsageError("--device", f"'{option}'", f"one of {', '.join(DEVICES)}")


def resolve_device(option: str) -> str:
    """"cpu" or "cuda" for ``--device``: auto is the GPU where torch sees one.

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
