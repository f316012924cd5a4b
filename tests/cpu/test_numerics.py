"""svdq_trt.contract.numerics and torch.ops.svdq.linear against the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from svdq_trt.base.errors import ShapeError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.contract.reference import linear as ref_linear
from svdq_trt.contract.reference import quant as ref
from svdq_trt.nn import ops  # noqa: F401

DTYPES = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}
FMT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
DT = pytest.mark.parametrize("dtype", DTYPES, ids=["f16", "bf16"])


def to_np(t: torch.Tensor) -> np.ndarray:
    """Tensor -> numpy with ml_dtypes for bf16."""
    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return t.numpy()


def db(ref_: np.ndarray, got: np.ndarray) -> float:
    """SQNR in dB."""
    return float(10 * np.log10((ref_**2).sum() / max(((ref_ - got) ** 2).sum(), 1e-300)))


def weights(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """[N, K] f32 with outlier columns, a zero group and a zero row."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=g)
    w[:, ::37] *= 20
    w[3, :64] = 0
    w[5] = 0
    return w


@FMT
@DT
def test_weight_codes_and_scales_match_the_reference(fmt, dtype):
    w = weights(24, 256)
    mine = numerics.quantize_weight(w, fmt, dtype)
    want = ref.quantize_weight(w.numpy(), fmt, DTYPES[dtype])
    a, b = ref.unpack_nibbles(mine.qweight.numpy()), ref.unpack_nibbles(want.qweight)
    assert (a != b).mean() < 2e-3  # fp32 against fp64 at a tie
    np.testing.assert_array_equal(to_np(mine.wscale).astype(np.float32), want.wscale.astype(np.float32))
    np.testing.assert_allclose(mine.wscale2.numpy(), want.wscale2, rtol=2e-7)


@FMT
def test_dequantize_weight_is_what_the_reference_reads(fmt):
    qw = numerics.quantize_weight(weights(24, 256), fmt)
    got = numerics.dequantize_weight(qw, fmt).numpy()
    want = ref.dequantize_weight(ref.QuantWeight(*(t.numpy() for t in qw)), fmt)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@DT
@pytest.mark.parametrize(
    ("fmt", "unsigned"), [*((f, False) for f in FORMATS.values()), (FORMATS["int4"], True)], ids=str
)
def test_activation_codes_are_bit_exact(fmt, unsigned, dtype):
    x = torch.randn(33, 256, generator=torch.Generator().manual_seed(1))
    x[:, 7] *= 60
    x[4, :64], x[5], x[6, 64:128] = 0, 0, 1e-7
    x = (x.abs() if unsigned else x).to(dtype)
    x[7, 70], x[8, 3] = torch.nan, torch.inf
    got = numerics.fake_quantize_act(x, fmt, unsigned).numpy().astype(np.float64)
    want = ref.quantize_act(to_np(x), fmt, unsigned).dequantize()
    np.testing.assert_array_equal(got, want.astype(np.float32).astype(np.float64))


@FMT
@DT
@pytest.mark.parametrize("activation", list(Activation), ids=lambda a: a.value or "none")
@pytest.mark.parametrize("rank", [0, 16])
def test_op_matches_the_reference_to_output_rounding(fmt, dtype, activation, rank):
    g = torch.Generator().manual_seed(2)
    n, k = 48, 192
    x = torch.randn(2, 9, k, generator=g).to(dtype)
    qw = numerics.quantize_weight(torch.randn(n, k, generator=g) / k**0.5, fmt, dtype)
    act_mul = (0.5 + torch.rand(k, generator=g)).to(dtype)
    down = (torch.randn(rank, k, generator=g) / 14).to(dtype)
    up, bias = torch.randn(n, rank, generator=g).to(dtype), torch.randn(n, generator=g).to(dtype)
    y = torch.ops.svdq.linear(x, qw.qweight, qw.wscale, act_mul, down, up, bias, qw.wscale2, fmt.name, activation.value)
    rqw = ref.QuantWeight(qw.qweight.numpy(), to_np(qw.wscale), qw.wscale2.numpy())
    args = (to_np(t) for t in (act_mul, down, up, bias))
    want = ref_linear.linear_unrounded(to_np(x.reshape(-1, k)), rqw, *args, fmt, activation)
    assert y.shape == (2, 9, activation.n_out(n)) and y.dtype == dtype
    got = y.float().numpy().reshape(want.shape).astype(np.float64)
    assert db(want, got) > (70 if dtype == torch.float16 else 52)


def test_nan_stays_in_its_row():
    qw = numerics.quantize_weight(weights(16, 64), FORMATS["w4a16"])
    x = torch.ones(4, 64, dtype=torch.float16)
    x[1, 5], x[2, 6] = torch.nan, torch.inf
    empty = (torch.zeros(0, 64).half(), torch.zeros(16, 0).half(), torch.zeros(16).half())
    y = torch.ops.svdq.linear(x, qw.qweight, qw.wscale, torch.ones(64).half(), *empty, qw.wscale2, "w4a16", "")
    assert y[[0, 3]].isfinite().all() and y[[1, 2]].isnan().all()


def test_wrong_shape_names_the_input():
    qw = numerics.quantize_weight(weights(16, 64), FORMATS["int4"])
    h = lambda *s: torch.zeros(*s).half()  # noqa: E731
    with pytest.raises(ShapeError, match=r"lora_up \(16, 3\), want \(16, 0\)"):
        torch.ops.svdq.linear(h(4, 64), qw.qweight, qw.wscale, h(64), h(0, 64), h(16, 3), h(16), qw.wscale2, "int4", "")
