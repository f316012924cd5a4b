"""The sm_90 w4a8 kernels against the reference, on identical quantized weights.

Two measures: codes and scales (through R = 0 outputs that reveal them), outputs in dB. Output rounding
alone gives 73 dB in f16 and 55 dB in bf16; codes match the reference exactly, so little else is left.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a GPU of compute capability 9.0", allow_module_level=True)

import kernel_calls as calls  # noqa: E402

from svdq_trt.contract.formats import W4A8, Activation  # noqa: E402
from svdq_trt.contract.reference.linear import linear_unrounded  # noqa: E402
from svdq_trt.contract.reference.quant import QuantWeight, quantize_act, quantize_weight, smooth  # noqa: E402
from svdq_trt.contract.tolerances import KERNEL_ERROR  # noqa: E402
from tests.harness.calls import to_device  # noqa: E402

LIMIT_DB = {torch.float16: KERNEL_ERROR["f16"].db, torch.bfloat16: KERNEL_ERROR["bf16"].db}
NUMPY = {torch.float16: np.dtype(np.float16), torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}


class Case:
    """Random operands of one linear, in numpy (for the reference) and bound to the library."""

    def __init__(self, svdq, m, n, k, r, dtype=torch.float16, activation="none", seed=0, x=None) -> None:
        """Draw everything from `seed`; `x` replaces the activation."""
        rng = np.random.default_rng(seed)
        act = NUMPY[dtype]
        spread = np.exp(rng.normal(0, 1, k))  # channels of unlike size, as smoothing finds them
        self.x = (rng.normal(0, 1, (m, k)) * spread).astype(act) if x is None else x.astype(act)
        self.act_mul = (1 / spread).astype(act)
        self.qw: QuantWeight = quantize_weight(rng.normal(0, k**-0.5, (n, k)), W4A8)
        self.down = rng.normal(0, k**-0.5, (r, k)).astype(act)
        self.up = rng.normal(0, 0.3, (n, r)).astype(act)
        self.bias = rng.normal(0, 1, n).astype(act)
        self.dtype, self.activation = dtype, activation
        self.linear = calls.bind_linear(
            svdq,
            "w4a8",
            x=to_device(self.x),
            qweight=to_device(self.qw.qweight),
            wscale=to_device(self.qw.wscale),
            act_mul=to_device(self.act_mul),
            lora_down=to_device(self.down),
            lora_up=to_device(self.up),
            bias=to_device(self.bias),
            wscale2=to_device(self.qw.wscale2),
            activation=activation,
        )

    def run(self) -> np.ndarray:
        """Y in fp64."""
        self.linear.run()
        torch.cuda.synchronize()
        return self.linear.y.double().cpu().numpy()

    def reference(self) -> np.ndarray:
        """Y before rounding."""
        act = Activation[self.activation.upper()]
        return linear_unrounded(self.x, self.qw, self.act_mul, self.down, self.up, self.bias, W4A8, act)


def assert_close(got: np.ndarray, want: np.ndarray, limit_db: float) -> None:
    """Signal over error of the finite rows, in dB; NaN in the same rows."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    good = ~np.isnan(want)
    error = np.sum((got[good] - want[good]) ** 2)
    db = 10 * np.log10(np.sum(want[good] ** 2) / max(error, 1e-300))
    worst = np.unravel_index(np.argmax(np.where(good, np.abs(got - want), 0)), want.shape)
    assert db >= limit_db, f"{db:.1f} dB, worst at {worst}: got {got[worst]}, want {want[worst]}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize(
    "m,n,k,r",
    [
        (256, 256, 256, 32),
        (1, 128, 128, 16),
        (17, 136, 192, 16),  # ragged N, K % 128 == 64, odd M
        (129, 264, 320, 64),
        (77, 8, 64, 0),
        (300, 1000, 3072, 128),
        (513, 640, 640, 32),
        (65, 520, 3136, 48),
        (96, 384, 12288, 32),
        (40, 256, 15360, 96),
        (33, 128, 16448, 272),
        (2048, 1280, 1280, 32),
        (1000, 128, 2304, 64),  # the longest short K; 8 tiles of t, each split over 5 CTAs
        (257, 264, 3136, 80),  # t in tiles of 256 rows
        (130, 128, 24640, 32),  # too long for one read of x
    ],
)
def test_linear_matches_reference(svdq, m, n, k, r, dtype):
    """Kernel error only: the reference quantizes the same activations to the same codes."""
    case = Case(svdq, m, n, k, r, dtype, seed=m + n)
    assert_close(case.run(), case.reference(), LIMIT_DB[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "geglu", "swiglu"])
@pytest.mark.parametrize("m,n,k,r", [(129, 528, 640, 32), (300, 1040, 256, 0)])
def test_activations_match_reference(svdq, m, n, k, r, activation, dtype):
    """A gated one with N/2 that is no multiple of a tile covers the pairing of the halves."""
    case = Case(svdq, m, n, k, r, dtype, activation, seed=7)
    assert_close(case.run(), case.reference(), LIMIT_DB[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize(
    "m,k,r",
    [
        *((70, 640, 0), (40, 3072, 0), (35, 5184, 16), (34, 12288, 32), (33, 15360, 0), (3, 64, 16)),
        *((41, 3072, 64), (9, 12288, 48), (5, 15424, 128), (2, 32768, 64)),  # quantized beside lora_down
    ],
)
def test_codes_and_scales_are_exact(svdq, m, k, r, dtype):
    """One weight of 7 per row of W, and nothing from the low-rank branch, make y = 7 * code * scale."""
    n = min(k, 512)
    case = Case(svdq, m, n, k, r, dtype, seed=k)
    rng = np.random.default_rng(1)
    columns = rng.choice(k, n, replace=False)
    one = np.zeros((n, k))
    one[np.arange(n), columns] = 7.0
    qw = quantize_weight(one, W4A8)
    for name, value in (("qweight", qw.qweight), ("wscale", qw.wscale), ("wscale2", qw.wscale2)):
        case.linear.tensors[name].copy_(to_device(value))
    case.linear.tensors["bias"].zero_()
    case.linear.tensors["lora_up"].zero_()
    got = case.run()
    xq = quantize_act(smooth(case.x, case.act_mul), W4A8)
    want = (xq.values * xq.scale)[:, columns] * 7.0
    rounded = want.astype(np.float32).astype(NUMPY[dtype]).astype(np.float64)
    bits_lost = 16 if dtype == torch.bfloat16 else 13
    step = np.spacing(np.abs(rounded).astype(np.float32)).astype(np.float64) * 2.0**bits_lost
    assert np.all(np.abs(got - want) <= 0.51 * np.maximum(step, 2.0**-24))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("k,r", [(640, 32), (3072, 32), (3072, 96)])
def test_bad_rows_stay_alone(svdq, k, r, dtype):
    """NaN, Inf and zero rows; every other row is as without them."""
    m = 150
    x = np.random.default_rng(3).normal(0, 1, (m, k))
    x[5, 100], x[77, k - 1], x[149, 0] = np.nan, np.inf, -np.inf
    x[6] = 0
    x[80] = 1e-30
    case = Case(svdq, m, 256, k, r, dtype, x=x)
    got, want = case.run(), case.reference()
    assert np.isnan(got[[5, 77, 149]]).all()
    assert_close(got, want, LIMIT_DB[dtype])


def test_f16_output_saturates(svdq):
    """±65504 instead of Inf."""
    case = Case(svdq, 16, 128, 128, 0)
    case.linear.tensors["wscale2"].mul_(1e7)
    got = case.run()
    assert np.isfinite(got).all() and np.abs(got).max() == 65504


def test_zero_tokens_launch_nothing(svdq):
    """M = 0 is not an error."""
    Case(svdq, 0, 128, 128, 16).linear.run()
    torch.cuda.synchronize()


@pytest.mark.parametrize("m,n,k,r", [(4608, 3072, 3072, 32), (1000, 1152, 12288, 128), (2048, 1280, 1280, 32)])
def test_hundred_runs_are_identical(svdq, m, n, k, r):
    """Poison y before each run: every element is written, and always with the same bits."""
    g = torch.Generator("cuda").manual_seed(5)
    x = torch.randn(m, k, generator=g, device="cuda").half().cpu().numpy()
    case = Case(svdq, 1, 128, k, r, x=x[:1])  # weights of the right K; widened below
    repeat = n // 128
    t = case.linear.tensors
    linear = calls.bind_linear(
        svdq,
        "w4a8",
        x=torch.from_numpy(x).cuda(),
        qweight=t["qweight"].repeat(repeat, 1),
        wscale=t["wscale"].repeat(1, repeat),
        act_mul=t["act_mul"],
        lora_down=t["lora_down"],
        lora_up=t["lora_up"].repeat(repeat, 1),
        bias=t["bias"].repeat(repeat),
        wscale2=t["wscale2"].repeat(repeat),
    )
    linear.run()
    first = linear.y.clone()
    assert torch.equal(first[:, :128], first[:, -128:])
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(100):
        linear.y.fill_(float("nan"))
        linear.workspace.inside.fill_(255)
        linear.run()
        differing += (linear.y.view(torch.int16) != first.view(torch.int16)).sum()
    assert differing.item() == 0


def test_graph_replay_is_identical(svdq):
    """Captured once, replayed with the input changed in place."""
    case = Case(svdq, 257, 384, 640, 32)
    want = case.run()
    x = case.linear.tensors["x"]
    kept = x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.linear.run()
    x.zero_()
    graph.replay()
    x.copy_(kept)
    case.linear.y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    np.testing.assert_array_equal(case.linear.y.double().cpu().numpy(), want)


@pytest.mark.parametrize("k,r", [(640, 32), (3072, 32), (3072, 128)])
def test_linears_in_a_row_share_a_workspace(svdq, k, r):
    """Kernels start before those in front of them have ended: none may overtake a reader of the one workspace."""
    cases = [Case(svdq, m, 256, k, r, seed=m) for m in (1500, 1, 700, 257)]
    want = [case.run() for case in cases]
    workspace = cases[0].linear.workspace.inside
    for case in cases:
        case.linear.params.workspace = workspace.data_ptr()
        case.linear.params.workspace_bytes = workspace.numel()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for case in cases * 10:
            case.linear.run()
    for _ in range(20):
        workspace.fill_(255)
        for case in cases:
            case.linear.y.fill_(float("nan"))
        graph.replay()
        for case, y in zip(cases, want, strict=True):
            np.testing.assert_array_equal(case.linear.y.double().cpu().numpy(), y)
