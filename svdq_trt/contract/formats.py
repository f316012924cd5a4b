"""The number formats: what a 4-bit linear stores and how its activations are rounded.

Standard library only. Letters: M tokens, N output features, K input features, R rank, G group size.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

K_MULTIPLE = 64  # K of every quantized linear; one packed 32-byte row segment, one int4 group
N_MULTIPLE = 8  # 16-byte rows of scales, bias and y; twice that for a gated activation
R_MULTIPLE = 16  # one k16 step of the 16-bit MMA of the low-rank branch
R_MAX = 1024  # above any use; the kernels refuse more

#: A group (or row) whose absmax is below this is a zero group: codes 0, scale 1. Keeps 1/scale finite.
ZERO_GROUP_ABSMAX = 2.0**-120


class Activation(enum.Enum):
    """What the linear applies after the bias. The value is the op-type suffix.

    A gated one makes N/2 features of N sums v: v[:, :N/2] · function(v[:, N/2:]). So the weight's rows are stacked
    [value; gate]; of a model that has the gate first, the recipe stacks them the other way round.
    """

    NONE = ""
    GELU = "Gelu"  # exact, erf
    GELU_TANH = "GeluTanh"
    SILU = "Silu"
    GEGLU = "Geglu"  # gated, by GELU
    SWIGLU = "Swiglu"  # gated, by SILU

    @property
    def gated(self) -> bool:
        """Whether a value and a gate make one feature of y."""
        return self in _FUNCTION_OF_GATE

    @property
    def function(self) -> Activation:
        """What each sum goes through, or each gate of a gated activation."""
        return _FUNCTION_OF_GATE.get(self, self)

    @property
    def rows_per_feature(self) -> int:
        """Rows of the weight for one feature of y."""
        return 2 if self.gated else 1

    def n_out(self, n: int) -> int:
        """Output features of a linear with N rows of weight."""
        return n // self.rows_per_feature


_FUNCTION_OF_GATE = {Activation.GEGLU: Activation.GELU, Activation.SWIGLU: Activation.SILU}


class Dtype(enum.Enum):
    """What an input of the op is stored as. The value is the word that documents print."""

    ACT = "act"  # as x: f16 or bf16
    INT8 = "int8"
    F32 = "float32"
    WSCALE = "wscale"  # ACT or INT8, by format: Format.wscale_dtype; TensorSpec.dtype_of resolves it

    @property
    def itemsize(self) -> int:
        """Bytes of an element; of WSCALE there are none before it is resolved."""
        return {Dtype.ACT: 2, Dtype.INT8: 1, Dtype.F32: 4}[self]


@dataclass(frozen=True)
class Format:
    """One row of the format table.

    Attributes:
        name: the name used on the command line, in manifests and in C (``SVDQ_FORMAT_<NAME>``).
        stem: op-type stem behind ``SVDQLinear``.
        index: value of the C enum.
        weight_group: G of the weight scales.
        act_group: G of the activation scales; 0 = one scale per token; None = activations stay 16 bit.
        wscale_dtype: ACT, or INT8 for z of w4a8 and the e4m3 bytes of nvfp4.
        wscale_cols: trailing dimension of `wscale` beyond [K/64, N] (nvfp4: four e4m3 bytes per 64); 1 = none.
        unsigned_codes: activations may have u4 codes, which needs act_unsigned and act_shift.
        summary: one line for tables and ``--help``.
    """

    name: str
    stem: str
    index: int
    weight_group: int
    act_group: int | None
    wscale_dtype: Dtype
    wscale_cols: int
    unsigned_codes: bool
    summary: str


INT4 = Format("int4", "Int4", 0, 64, 64, Dtype.ACT, 1, True, "s4 weights, s4/u4 activations, groups of 64")
W4A8 = Format("w4a8", "W4A8", 1, 64, 0, Dtype.INT8, 1, False, "s4 weights in two levels, int8 activations per token")
NVFP4 = Format("nvfp4", "NVFP4", 2, 16, 16, Dtype.INT8, 4, False, "e2m1 weights and activations, e4m3 scales per 16")
W4A16 = Format("w4a16", "W4A16", 3, 64, None, Dtype.ACT, 1, False, "s4 weights in groups of 64, 16-bit activations")

FORMATS: dict[str, Format] = {f.name: f for f in (INT4, W4A8, NVFP4, W4A16)}

W4A8_Z_MAX = 18  # 7 * 18 = 126 <= 127: z * q stays in int8
F16_MAX = 65504.0  # largest f16
FP8_MAX = 448.0  # largest e4m3
FP4_MAX = 6.0  # largest e2m1
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1 magnitudes by code; bit 3 is the sign

#: Shift that makes an activation's output non-negative, so that u4 codes can be used (int4 only).
ACT_SHIFT = {Activation.GELU: 0.171875, Activation.GELU_TANH: 0.171875, Activation.SILU: 0.2734375}
