"""Layers side by side on one device: the threads that work on them, and their weights, there in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from svdq_trt.checkpoint.ahead import Read, read_ahead_of
from svdq_trt.models import LinearGroup, member_tensors, read_members

_GPU_WORKERS = 4  # layers side by side on one GPU: while one waits for launches or the host, others compute
_GPU_WORKER_BYTES = 8 * 10**9  # of GPU memory that one may take, for the largest layers known

Members = tuple[list[Tensor], list[Tensor | None]]  # weights and biases of a group


@contextmanager
def layer_pool(device: torch.device, ranks: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Layers side by side, one thread each, and on a GPU one stream each.

    On the CPU that is faster than threads inside an operation. The bits are the same for any number of workers.

    Args:
        ranks: processes that work on the device at the same time, this one among them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if device.type == "cuda":
        # Loads torch's linear algebra for GPUs, which threads must not do at once.
        torch.linalg.cholesky_ex(torch.eye(2, device=device, dtype=torch.float64))
        torch.cuda.empty_cache()  # what calibration left there counts as used
        workers = gpu_workers(torch.cuda.mem_get_info(device)[0], ranks)
    else:
        workers = threads
    pool = ThreadPoolExecutor(workers, initializer=_enter, initargs=(device,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def gpu_workers(free: int, ranks: int) -> int:
    """How many workers each of `ranks` processes may have on a GPU with `free` bytes."""
    return max(1, min(_GPU_WORKERS, free // ranks // _GPU_WORKER_BYTES))


def _enter(device: torch.device) -> None:
    """Give a worker its stream."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # and makes `device` the thread's own


@contextmanager
def layer_weights(
    module: nn.Module, groups: Sequence[LinearGroup], read: Read | None, device: torch.device
) -> Iterator[dict[str, Callable[[], Members]]]:
    """By node, what gives the weights and biases of each group when its turn comes.

    Args:
        groups: in the order in which they will be asked for.
        read: name -> parameter, for a module on meta. It reads ahead of a GPU; on the CPU each worker reads for itself.
    """
    names = [f"{member}.{leaf}" for group in groups for member in group.members for leaf in ("weight", "bias")]
    sizes = {name: t.nbytes for name, t in module.named_parameters()}
    with read_ahead_of(device, read, [(name, sizes[name]) for name in names if name in sizes]) as read_next:
        yield {group.node: _source(module, group, read_next) for group in groups}


def _source(module: nn.Module, group: LinearGroup, read: Read | None) -> Callable[[], Members]:
    weights, biases = member_tensors(module, group)
    if read is None:
        return lambda: (weights, biases)
    return partial(read_members, group, [b is not None for b in biases], read)
