"""libsvdq.so through ctypes, on torch CUDA tensors, and random linears with their fp64 reference."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from svdq_trt.contract.formats import ACT_SHIFT, FORMATS, Activation, Format
from svdq_trt.contract.ops import INPUTS
from svdq_trt.contract.reference.linear import linear_unrounded, round_output
from svdq_trt.contract.reference.quant import Array, QuantWeight, quantize_weight
from svdq_trt.contract.tolerances import KERNEL_ERROR
from svdq_trt.nn.capi import Params, declare

if TYPE_CHECKING:
    import torch

OK, BAD_ARGUMENT, UNSUPPORTED, WORKSPACE, CUDA = range(5)
NUMPY_DTYPE: dict[str, Any] = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
ACTIVATIONS = list(Activation)  # the C enum has the same order
_ROOT = Path(__file__).resolve().parents[2]


def library_path() -> Path | None:
    """SVDQ_LIBRARY, or where the build or the package puts it."""
    named = os.environ.get("SVDQ_LIBRARY")
    built = [_ROOT / folder / "libsvdq.so" for folder in ("build/plugins", "svdq_trt/lib")]
    return next((p for p in ([Path(named)] if named else built) if p.is_file()), None)


class Library:
    """The C API with its argument types."""

    def __init__(self) -> None:
        self.c = declare(ctypes.CDLL(str(library_path())))

    def workspace_bytes(self, format_index: int, m: int, n: int, k: int, r: int) -> int:
        """Bytes; -1 where the arguments are refused."""
        size = ctypes.c_size_t()
        status = self.c.svdq_workspace_bytes(format_index, m, n, k, r, ctypes.byref(size))
        return size.value if status == OK else -1


def to_gpu(a: Array) -> torch.Tensor:
    """A numpy array of any of our dtypes -> CUDA tensor with the same bytes."""
    import torch

    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(a).view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(a)).cuda()


def to_numpy(t: torch.Tensor) -> Array:
    """The way back."""
    import torch

    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return t.cpu().numpy()


@dataclass
class Linear:
    """One linear and its input, on the host. Arrays as in svdq_trt/contract/ops.py; x is [M, K]."""

    fmt: Format
    dtype: str
    activation: Activation
    x: Array
    weight: QuantWeight
    act_mul: Array
    lora_down: Array
    lora_up: Array
    bias: Array
    unsigned: bool = False
    shift: float = 0.0

    def reference(self) -> Array:
        """[M, N_out] in the output dtype."""
        y = linear_unrounded(
            self.x,
            self.weight,
            self.act_mul,
            self.lora_down,
            self.lora_up,
            self.bias,
            self.fmt,
            self.activation,
            self.unsigned,
            self.shift,
        )
        return round_output(y, NUMPY_DTYPE[self.dtype])

    def with_x(self, x: Array) -> Linear:
        """The same linear on another input."""
        return replace(self, x=x)


def split_name(name: str) -> tuple[Format, bool]:
    """``int4u`` is int4 with unsigned activation codes."""
    return (FORMATS["int4"], True) if name == "int4u" else (FORMATS[name], False)


def random_linear(
    name: str,
    dtype: str,
    m: int,
    n: int,
    k: int,
    r: int,
    activation: Activation = Activation.NONE,
    bias: bool = True,
    seed: int = 0,
) -> Linear:
    """Gaussian data with a few outlier channels; y is of order 1, so that activations bend."""
    fmt, unsigned = split_name(name)
    rng = np.random.default_rng([seed, m, n, k, r, fmt.index])
    t = NUMPY_DTYPE[dtype]
    x = rng.standard_normal((m, k))
    x[:, :: max(k // 5, 1)] *= 8
    shift = 0.0
    if unsigned:
        shift = ACT_SHIFT[Activation.GELU]
        x = np.maximum(x, -shift / 2)  # as behind a GELU
    w = quantize_weight(rng.standard_normal((n, k)) / np.sqrt(k), fmt, t)
    return Linear(
        fmt,
        dtype,
        activation,
        x.astype(t),
        w,
        rng.uniform(0.4, 1.6, k).astype(t),
        (rng.standard_normal((r, k)) / np.sqrt(k)).astype(t),
        (rng.standard_normal((n, r)) / np.sqrt(max(r, 1))).astype(t),
        (rng.standard_normal(n) if bias else np.zeros(n)).astype(t),
        unsigned,
        shift,
    )


GUARD_ROWS = 4


@dataclass
class Call:
    """A linear on the GPU: y and the workspace are fenced with guard bytes and filled with NaN."""

    lib: Library
    linear: Linear
    keep: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        lin = self.linear
        for key in (t.name for t in INPUTS):
            self.keep[key] = to_gpu(getattr(lin.weight if key in lin.weight.__annotations__ else lin, key))
        size = self.lib.workspace_bytes(lin.fmt.index, self.m, self.n, self.k, self.r)
        self.keep["workspace"] = torch.full((size + 512,), 0xFF, dtype=torch.uint8, device="cuda")
        self.workspace_size = size
        self.keep["y"] = torch.full(
            (self.m + 2 * GUARD_ROWS, self.n_out), float("nan"), dtype=self.keep["x"].dtype, device="cuda"
        )

    @property
    def y(self) -> torch.Tensor:
        """Guard rows, y [M, N_out], guard rows."""
        return self.keep["y"]

    @property
    def workspace(self) -> torch.Tensor:
        """Guard bytes, the workspace, guard bytes."""
        return self.keep["workspace"]

    @property
    def m(self) -> int:
        return self.linear.x.shape[0]

    @property
    def k(self) -> int:
        return self.linear.x.shape[1]

    @property
    def n(self) -> int:
        return self.linear.bias.shape[0]

    @property
    def r(self) -> int:
        return self.linear.lora_down.shape[0]

    @property
    def n_out(self) -> int:
        return self.linear.activation.n_out(self.n)

    @cached_property
    def params(self) -> Params:
        """The C struct; tests may change fields before run()."""
        p, lin = Params(), self.linear
        p.format, p.activation = lin.fmt.index, ACTIVATIONS.index(lin.activation)
        p.dtype, p.act_unsigned, p.act_shift = int(lin.dtype == "bf16"), int(lin.unsigned), lin.shift
        p.m, p.n, p.k, p.r = self.m, self.n, self.k, self.r
        for key, t in self.keep.items():
            if key not in ("y", "workspace"):
                setattr(p, key, t.data_ptr() or None)
        p.y = self.keep["y"][GUARD_ROWS:].data_ptr() if self.m else None
        p.workspace = self.keep["workspace"].data_ptr() + 256
        p.workspace_bytes = self.workspace_size
        return p

    def launch(self, stream: int | None = None, entry: str = "svdq_linear") -> int:
        """The status; does not synchronize."""
        import torch

        handle = torch.cuda.current_stream().cuda_stream if stream is None else stream
        return getattr(self.lib.c, entry)(ctypes.byref(self.params), handle)

    def result(self) -> Array:
        """y [M, N_out] after checking that nothing was written around it or around the workspace."""
        import torch

        torch.cuda.synchronize()
        y, ws = self.keep["y"], self.keep["workspace"]
        for fence in (y[:GUARD_ROWS], y[self.m + GUARD_ROWS :]):
            assert bool(torch.isnan(fence).all()), "written outside of y"
        for fence in (ws[:256], ws[256 + self.workspace_size :]):
            assert bool((fence == 0xFF).all()), "written outside of the workspace"
        return to_numpy(y[GUARD_ROWS : self.m + GUARD_ROWS])

    def run(self) -> Array:
        """Launch, check the status, return y."""
        status = self.launch()
        text, error = self.lib.c.svdq_status_string(status), self.lib.c.svdq_last_cuda_error()
        assert status == OK, f"{text} cuda={error}"
        return self.result()


def sqnr_db(reference: Array, got: Array) -> float:
    """Signal to noise in dB; -inf where `got` has a NaN or Inf that the reference has not."""
    ref: NDArray[np.float64] = reference.astype(np.float64)
    err = got.astype(np.float64) - ref
    if not np.isfinite(err).all():
        return -np.inf
    return float(10 * np.log10((ref**2).sum() / max((err**2).sum(), 1e-300)))


def assert_same_bits(got: Array, want: Array) -> None:
    """Of two arrays of 16-bit floats; NaN equals the same NaN."""
    np.testing.assert_array_equal(got.view(np.int16), want.view(np.int16))


def assert_accurate(got: Array, want: Array, dtype: str) -> None:
    """As near to the reference as the kernels of a dtype have to be."""
    db, limit = sqnr_db(want, got), KERNEL_ERROR[dtype]
    assert db >= limit.db, f"{db:.1f} dB, want {limit.db} ({limit.reason}); {worst(want, got)}"


def assert_bad_rows_stay_alone(got: Array, clean: Array, rows: Sequence[int]) -> None:
    """`rows` of x had a NaN or Inf: they are NaN throughout, the others what they are without those."""
    assert np.isnan(got[rows].astype(np.float64)).all(), "a row with NaN or Inf must be NaN throughout"
    others = np.setdiff1d(np.arange(len(got)), rows)
    assert_same_bits(got[others], clean[others])


def assert_right_on_two_streams(make: Callable[[], list[Any]], want: list[Array], **launch: str) -> None:
    """A hundred launches of each by turns on two streams, each stream with its own workspaces: every y is compared.

    Args:
        make: the calls (Call or MlpCall), anew each time. want: their y. launch: for call.launch().
    """
    import torch

    expected = [torch.from_numpy(y.view(np.int16)).cuda() for y in want]
    streams = [torch.cuda.Stream() for _ in range(2)]
    calls = [make() for _ in streams]
    wrong = [torch.zeros((), dtype=torch.bool, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, mine, flag in zip(streams, calls, wrong, strict=True):
            with torch.cuda.stream(stream):
                for call, right in zip(mine, expected, strict=True):
                    call.workspace.fill_(255)
                    assert call.launch(stream.cuda_stream, **launch) == OK
                    y = call.y.view(torch.int16)[GUARD_ROWS:-GUARD_ROWS]
                    flag.logical_or_((y != right).any())
    torch.cuda.synchronize()
    assert not any(bool(flag) for flag in wrong)


def worst(reference: Array, got: Array) -> str:
    """Where the largest error is, for a failure's message."""
    err = np.abs(got.astype(np.float64) - reference.astype(np.float64))
    i = np.unravel_index(np.argmax(np.where(np.isnan(err), np.inf, err)), err.shape)
    where = tuple(int(j) for j in i)
    return f"worst at {where}: got {got[i]}, want {reference[i]}; {np.isnan(err).sum()} NaN"
