"""Working on several groups at once on one device: a pool of threads, and weights that are read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from svdq_trt.checkpoint.ahead import Read, read_ahead_of
from svdq_trt.models import LinearGroup, member_tensors, read_members

_GPU_WORKERS = 4  # groups at once on one GPU: while one waits for launches or the host, others compute
_GPU_WORKER_BYTES = 8 * 10**9  # GPU memory that one may take, for the largest groups known

Members = tuple[list[Tensor], list[Tensor | None]]  # of a group: weights and biases


@contextmanager
def layer_pool(device: torch.device, ranks: int = 1) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that work on one group each; on a GPU, each has its own stream.

    On the CPU this is faster than threads inside an operation. The bits are the same for any number of workers.

    Args:
        ranks: number of processes that work on the device at the same time, this one included.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if device.type == "cuda":
        # Loads torch's linear algebra for GPUs, which threads must not do at the same time.
        torch.linalg.cholesky_ex(torch.eye(2, device=device, dtype=torch.float64))
        torch.cuda.empty_cache()  # or memory that calibration has freed would count as used
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
    """Number of workers that each of `ranks` processes may have on a GPU with `free` bytes."""
    return max(1, min(_GPU_WORKERS, free // ranks // _GPU_WORKER_BYTES))


def _enter(device: torch.device) -> None:
    """Give a worker its stream."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # and makes `device` the thread's own


@contextmanager
def layer_weights(
    module: nn.Module, groups: Sequence[LinearGroup], read: Read | None, device: torch.device
) -> Iterator[dict[str, Callable[[], Members]]]:
    """Context with a function per node that returns the weights and biases of its members when its turn comes.

    Args:
        groups: the groups, in the order in which they will be asked for.
        read: name -> parameter, for a module on meta. For a GPU it reads ahead; on the CPU each worker
            reads for itself.
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
