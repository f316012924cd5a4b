"""The attention kernel of every GPU and its preparation, run on the CPU, against the fp64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_calls import Library

from svdq_trt.contract.attention import ATTENTION_OPS
from tests.harness.attentions import KERNEL_DB, Attention, KernelCall, db
from tests.harness.emulated import last_launch


def attention(op: str = "", dtype: str = "f16", **sizes: int) -> Attention:
    """One of the contract's, by the end of its op type."""
    return Attention(ATTENTION_OPS[f"SVDQAttention{op}"], dtype, **{"b": 1, "heads": 2, "kv_heads": 2, **sizes})


def check(library: Library, one: Attention, limit: float | None = None) -> None:
    for y, want in zip(KernelCall.bind(library, one).run(), one.reference(), strict=True):
        assert db(want, y) > (limit or KERNEL_DB[one.dtype])


@pytest.mark.parametrize("dtype", KERNEL_DB)
@pytest.mark.parametrize("d", (8, 32, 64, 72, 104, 128))
@pytest.mark.parametrize("tokens", (1, 17, 130))
def test_lengths_that_fill_no_tile(library: Library, tokens: int, d: int, dtype: str) -> None:
    check(library, attention(dtype=dtype, tokens=tokens, d=d, heads=1, kv_heads=1))
    assert last_launch(library)[0] == -(-tokens // 128)


@pytest.mark.parametrize("d", (64, 72, 128))
@pytest.mark.parametrize("op", ("Cross", "CrossMasked"))
def test_cross_reads_its_part_of_the_text(library: Library, op: str, d: int) -> None:
    check(library, attention(op, b=2, tokens=30, text=77, d=d, heads=4, kv_heads=2, parts=2, part=1))


@pytest.mark.parametrize("dtype", KERNEL_DB)
@pytest.mark.parametrize("op", ("Joint", "JointNormedRotary"))
@pytest.mark.parametrize("d", (64, 72, 128))
def test_joint_is_one_softmax_with_two_outputs(library: Library, d: int, op: str, dtype: str) -> None:
    check(library, attention(op, dtype, b=2, tokens=70, text=7, d=d))


@pytest.mark.parametrize(("heads", "kv_heads"), ((2, 1), (3, 3), (6, 2)), ids=str)
@pytest.mark.parametrize("d", (64, 72))
@pytest.mark.parametrize("op", ("Normed", "Rotary", "NormedRotary", "JointNormed"))
def test_norm_and_rotation_where_a_warp_has_heads_of_several_kinds(
    library: Library, op: str, d: int, heads: int, kv_heads: int
) -> None:
    check(library, attention(op, b=2, tokens=7, text=4, d=d, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("d", (64, 128))
def test_maximum_that_grows_late_and_outliers(library: Library, d: int) -> None:
    """The last block of keys outweighs the ones before it, so that their sum is scaled to almost nothing."""
    one = replace(attention(tokens=150, d=d), outliers=True)
    one.tensors["qkv"][:, 140:, 2 * d : 4 * d] *= 4
    check(library, one)


@pytest.mark.parametrize("dtype", KERNEL_DB)
@pytest.mark.parametrize("least", (-np.inf, -10000.0, -1e30, None), ids=("inf", "1e4", "1e30", "lowest"))
def test_masked_keys_do_not_count_wherever_they_stand(library: Library, dtype: str, least: float | None) -> None:
    """Whole blocks of them before the first that counts, whose logits are far below 0; then all of a batch's."""
    lowest = float(torch.finfo(torch.float16 if dtype == "f16" else torch.bfloat16).min)
    low = lowest if least is None else max(least, lowest) if np.isfinite(least) else least
    one = attention("CrossMasked", dtype, b=2, tokens=20, text=200, d=64)
    one.tensors["q"][...] = np.abs(one.tensors["q"])
    one.tensors["kv"][..., :128] = -4 * np.abs(one.tensors["kv"][..., :128])
    one.tensors["bias"][...] = 0
    one.tensors["bias"][0, :140] = low
    one.tensors["bias"][1, 60:] = low
    check(library, one)
    if least != -np.inf:
        one.tensors["bias"][1] = low
        check(library, one, 40)  # fp32 has few bits left for what the logits differ by


@pytest.mark.parametrize("d", (64, 72, 128))
def test_bad_queries_stay_alone(library: Library, d: int) -> None:
    """NaN in one query, infinity in another; all other rows keep their bits."""
    one = attention("Cross", tokens=140, text=70, d=d)
    (clean,) = KernelCall.bind(library, one).run()
    one.tensors["q"][0, 3, 1], one.tensors["q"][0, 139, d + 5] = np.nan, np.inf
    (got,) = KernelCall.bind(library, one).run()
    bad = torch.zeros_like(got, dtype=torch.bool)
    bad[0, 3, :d] = bad[0, 139, d:] = True
    assert got[bad].isnan().all()
    assert torch.equal(got[~bad], clean[~bad])


@pytest.mark.parametrize("d", (8, 72, 128))
def test_rows_do_not_depend_on_their_neighbours(library: Library, d: int) -> None:
    """Of a batch's queries reversed, the same bits in reverse."""
    one = attention("Cross", tokens=50, text=140, d=d)
    one.tensors["q"][0, ::5] *= 8  # maxima of these grow more often
    (first,) = KernelCall.bind(library, one).run()
    one.tensors["q"][...] = one.tensors["q"][:, ::-1].copy()
    (second,) = KernelCall.bind(library, one).run()
    assert torch.equal(first, second.flip(1))


def test_what_runs_where(library: Library) -> None:
    """The emulated library is of sm_89's kernels."""
    supports = library.c.svdq_attention_supports
    assert [d for d in range(0, 264, 4) if supports(d, 0, 89)] == list(range(8, 129, 8))
    assert supports(64, 1, 89) and not supports(64, 2, 89)
    assert not supports(64, 0, 80) and not supports(64, 0, 90)


def test_both_functions_run_the_same_kernel_here(library: Library) -> None:
    call = KernelCall.bind(library, attention(tokens=9, d=40))
    assert torch.equal(call.run()[0], call.run("svdq_attention_portable")[0])
