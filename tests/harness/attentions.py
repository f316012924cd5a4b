"""Random attentions in numpy, their fp64 reference, and both as torch tensors."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from functools import cached_property

import ml_dtypes
import numpy as np
import torch
from kernel_calls import ALIGNMENT, Fenced, Library
from numpy.typing import NDArray
from torch import Tensor

from svdq_trt.contract.attention import AttentionOp, AttentionSettings, Size, Source
from svdq_trt.contract.formats import Dtype
from svdq_trt.contract.reference.attention import attention_unrounded
from svdq_trt.contract.reference.quant import Array
from svdq_trt.nn import capi
from svdq_trt.nn.attention import Call, apply
from tests.harness.linears import NUMPY_DTYPE

TORCH_DTYPE = {"f16": torch.float16, "bf16": torch.bfloat16}
#: dtype -> SQNR in dB of a kernel. Rounding q^, k^, the weights and y leaves 70 and 52, a lost key or a swapped
#: fragment less than 30.
KERNEL_DB = {"f16": 66, "bf16": 48}


@dataclass
class Attention:
    """One attention: inputs by name, as in svdq_trt/contract/attention.py.

    `outliers`: some channels of q and k are large, one of v too, as trained models have them.
    """

    op: AttentionOp
    dtype: str = "f16"
    b: int = 2
    tokens: int = 9
    text: int = 5
    heads: int = 4
    kv_heads: int = 2
    d: int = 16
    parts: int = 1
    part: int = 0
    outliers: bool = False
    seed: int = 0
    settings: AttentionSettings = field(init=False)

    def __post_init__(self) -> None:
        eps = 1e-6 if self.op.normed else 0.0
        part = self.part if self.op.source is Source.CROSS else 0
        self.settings = AttentionSettings(self.heads, self.kv_heads, 1.0 / math.sqrt(self.d), kv_part=part, eps=eps)

    @cached_property
    def tensors(self) -> dict[str, Array]:
        """Every input. Ops with equal seeds and sizes have equal inputs where they have the same."""
        kv = 2 * self.kv_heads * self.d
        joint = self.op.source is Source.JOINT
        sizes = {
            Size.B: self.b,
            Size.L: self.tokens,
            Size.T: self.text,
            Size.S: self.tokens + (self.text if joint else 0),
            Size.D: self.d,
            Size.QKV: self.heads * self.d + kv,
            Size.Q: self.heads * self.d,
            Size.KV: self.parts * kv,
        }
        made: dict[str, Array] = {}
        for spec in self.op.inputs:
            rng = np.random.default_rng([self.seed, *spec.name.encode()])  # other sizes of one leave the others alone
            x = rng.standard_normal([sizes[dim] for dim in spec.dims])
            if spec.name in ("cos", "sin"):  # pairs of equal values on the unit circle
                angles = np.repeat(np.random.default_rng(self.seed + 1).uniform(0, 9, (len(x), self.d // 2)), 2, axis=1)
                x = np.cos(angles) if spec.name == "cos" else np.sin(angles)
            elif spec.name.endswith("norm"):
                x = 1 + 0.2 * x
            elif spec.name == "bias":
                x[:, -2:] = -10000.0  # padding
            elif self.outliers:
                x[..., 1 :: self.d] *= 6.0
                x[..., 3 :: self.d] += 4.0
            made[spec.name] = x.astype(np.float32 if spec.dtype is Dtype.F32 else NUMPY_DTYPE[self.dtype])
        return made

    def reference(self) -> tuple[NDArray[np.float64], ...]:
        """The outputs, unrounded."""
        return attention_unrounded(self.op, self.tensors, self.settings)

    def call(self, device: str = "cpu", dtype: torch.dtype | None = None) -> Call:
        """The call in torch; `dtype` replaces the act dtype."""
        tensors = {}
        for spec in self.op.inputs:
            x = self.tensors[spec.name]
            bits = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == ml_dtypes.bfloat16 else None
            tensor = torch.from_numpy(x) if bits is None else bits
            tensors[spec.name] = tensor.to(device, dtype if spec.dtype is Dtype.ACT else None)
        return Call(self.op, tensors, self.settings)

    def run(self, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """The torch op's outputs."""
        return apply(self.call(device, dtype))


def db(want: NDArray[np.float64], got: Tensor) -> float:
    """SQNR of an output."""
    error = np.sum((got.double().cpu().numpy() - want) ** 2) / np.sum(want**2)
    return -10 * math.log10(max(float(error), 1e-30))


@dataclass
class KernelCall:
    """svdq_attention of one attention, between fences on a library's device."""

    library: Library
    params: capi.AttentionParams
    held: dict[str, Tensor]
    outputs: tuple[Fenced, ...]
    views: tuple[Tensor, ...]  # of the outputs: y, and in Joint added_y; NaN at first
    workspace: Fenced

    @classmethod
    def bind(cls, library: Library, one: Attention) -> KernelCall:
        """Its inputs, outputs and a workspace of the size that the library asks for."""
        call = one.call(library.device)
        held = {name: t.clone(memory_format=torch.contiguous_format) for name, t in call.tensors.items()}
        outputs, views = [], []
        for out in call.op.outputs:
            shape = [call.sizes[dim] for dim in out.dims]
            fenced = Fenced(2 * math.prod(shape), 2 * 4 * shape[-1], library.device)
            outputs.append(fenced)
            views.append(fenced.inside.view(call.first.dtype).view(shape))
        params, size = capi.attention_params(call, held, tuple(views)), ctypes.c_size_t()
        status = library.c.svdq_attention_workspace_bytes(ctypes.byref(params), ctypes.byref(size))
        library.check(status, "svdq_attention_workspace_bytes")
        workspace = Fenced(size.value, ALIGNMENT, library.device)
        params.workspace, params.workspace_bytes = workspace.inside.data_ptr(), size.value
        return cls(library, params, held, tuple(outputs), tuple(views), workspace)

    def run(self, entry: str = "svdq_attention") -> tuple[Tensor, ...]:
        """The outputs of one launch by this function of the C API, copied; raises where something else was written."""
        on_gpu = self.library.device == "cuda"
        stream = torch.cuda.current_stream().cuda_stream if on_gpu else 0
        self.library.check(getattr(self.library.c, entry)(ctypes.byref(self.params), stream), entry)
        if on_gpu:
            torch.cuda.synchronize()
        for fenced in (*self.outputs, self.workspace):
            fenced.check(entry)
        return tuple(view.clone() for view in self.views)
