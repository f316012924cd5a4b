"""Attention against the fp64 reference: what this GPU runs, and the kernel that every GPU can run."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_calls import OK, Library

from svdq_trt.contract.attention import ATTENTION_OPS
from tests.harness.attentions import KERNEL_DB, Attention, KernelCall, db

ENTRIES = pytest.mark.parametrize("entry", ("svdq_attention", "svdq_attention_portable"))
SIZES = pytest.mark.parametrize("d", (64, 72, 128))


def check(library: Library, entry: str, one: Attention, limit: float | None = None) -> None:
    for y, want in zip(KernelCall.bind(library, one).run(entry), one.reference(), strict=True):
        assert db(want, y) > (limit or KERNEL_DB[one.dtype])


@ENTRIES
@SIZES
@pytest.mark.parametrize("dtype", KERNEL_DB)
@pytest.mark.parametrize("op", ATTENTION_OPS.values(), ids=list(ATTENTION_OPS))
def test_every_op(svdq: Library, op: object, dtype: str, d: int, entry: str) -> None:
    check(svdq, entry, Attention(op, dtype, tokens=333, text=77, heads=6, kv_heads=2, d=d, parts=3, part=1))


@ENTRIES
@SIZES
@pytest.mark.parametrize("tokens", (1, 17, 127, 128, 129, 640, 1031))
def test_lengths(svdq: Library, tokens: int, d: int, entry: str) -> None:
    check(svdq, entry, Attention(ATTENTION_OPS["SVDQAttention"], tokens=tokens, d=d))
    check(svdq, entry, Attention(ATTENTION_OPS["SVDQAttentionCross"], tokens=200, text=tokens, d=d))


@pytest.mark.parametrize("d", (8, 16, 24, 32, 40, 48, 56, 80, 88, 96, 104, 112, 120))
def test_portable_takes_every_size_of_heads(svdq: Library, d: int) -> None:
    op = ATTENTION_OPS["SVDQAttentionNormedRotary"]
    check(svdq, "svdq_attention_portable", Attention(op, "bf16", tokens=150, d=d))


@ENTRIES
@SIZES
def test_maximum_that_grows_late_and_outliers(svdq: Library, d: int, entry: str) -> None:
    """Keys of the first and of the last block outweigh all others, so that sums are scaled to almost nothing."""
    for keys in (slice(0, 9), slice(590, 600)):
        one = replace(Attention(ATTENTION_OPS["SVDQAttention"], tokens=600, d=d), outliers=True)
        one.tensors["qkv"][:, keys, 4 * d : 6 * d] *= 4
        check(svdq, entry, one)


@ENTRIES
@pytest.mark.parametrize("dtype", KERNEL_DB)
@pytest.mark.parametrize("least", (-np.inf, -10000.0, -1e30, None), ids=("inf", "1e4", "1e30", "lowest"))
def test_masked_keys_do_not_count_wherever_they_stand(
    svdq: Library, dtype: str, least: float | None, entry: str
) -> None:
    """Whole blocks of them, at either end, and logits far below 0 elsewhere; then all of a batch's."""
    lowest = float(torch.finfo(torch.float16 if dtype == "f16" else torch.bfloat16).min)
    low = lowest if least is None else max(least, lowest) if np.isfinite(least) else least
    one = Attention(ATTENTION_OPS["SVDQAttentionCrossMasked"], dtype, tokens=200, text=600, heads=2, kv_heads=2, d=64)
    one.tensors["q"][...] = np.abs(one.tensors["q"])
    one.tensors["kv"][..., :128] = -4 * np.abs(one.tensors["kv"][..., :128])
    one.tensors["bias"][...] = 0
    one.tensors["bias"][0, :450] = low
    one.tensors["bias"][1, 60:] = low
    check(svdq, entry, one)
    if least != -np.inf:
        one.tensors["bias"][1] = low
        check(svdq, entry, one, 40)  # fp32 has few bits left for what the logits differ by


@ENTRIES
@SIZES
def test_bad_queries_stay_alone(svdq: Library, d: int, entry: str) -> None:
    """NaN in one query; all other rows keep their bits."""
    one = Attention(ATTENTION_OPS["SVDQAttentionCross"], b=1, tokens=140, text=300, heads=2, kv_heads=2, d=d)
    (clean,) = KernelCall.bind(svdq, one).run(entry)
    one.tensors["q"][0, 3, 1] = np.nan
    (got,) = KernelCall.bind(svdq, one).run(entry)
    bad = torch.zeros_like(got, dtype=torch.bool)
    bad[0, 3, :d] = True
    assert got[bad].isnan().all()
    assert torch.equal(got[~bad], clean[~bad])


@ENTRIES
@SIZES
def test_graph_of_launches_gives_the_same_bits_each_time(svdq: Library, d: int, entry: str) -> None:
    op = ATTENTION_OPS["SVDQAttentionJointNormedRotary"]
    call = KernelCall.bind(svdq, Attention(op, "bf16", tokens=1000, text=77, heads=8, kv_heads=8, d=d))
    first = call.run(entry)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        assert getattr(svdq.c, entry)(ctypes.byref(call.params), stream) == OK
    for _ in range(20):
        call.workspace.inside.fill_(255)
        for view in call.views:
            view.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for view, want in zip(call.views, first, strict=True):
            assert torch.equal(view, want)
