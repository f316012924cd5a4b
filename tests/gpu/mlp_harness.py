"""Two linears with an activation between them, and their reference."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svdq_harness import OK, Call, Library, Linear, random_linear

from svdq_trt.contract.formats import Activation
from svdq_trt.contract.reference.quant import Array
from svdq_trt.nn.capi import MlpParams

if TYPE_CHECKING:
    import torch


@dataclass
class Mlp:
    """fc1 with its input x [M, K1] and its activation; fc2, whose x [M, K2] only has the hidden's shape."""

    fc1: Linear
    fc2: Linear

    def with_x(self, x: Array) -> Mlp:
        """The same linears on another input."""
        return replace(self, fc1=self.fc1.with_x(x))

    def without_up(self) -> Mlp:
        """fc2's lora_up is zero: y shows the hidden's codes and scales, and nothing of t."""
        return replace(self, fc2=replace(self.fc2, lora_up=self.fc2.lora_up * 0))


def random_mlp(
    name: str, dtype: str, m: int, k: int, hidden: int, n: int, ranks: tuple[int, int], activation: Activation
) -> Mlp:
    """Random linears K -> hidden -> N; ``int4u`` is int4 with unsigned codes and a shift for the hidden."""
    first = "int4" if name == "int4u" else name
    outputs = 2 * hidden if activation is Activation.GEGLU else hidden
    return Mlp(
        random_linear(first, dtype, m, outputs, k, ranks[0], activation),
        random_linear(name, dtype, m, n, hidden, ranks[1], seed=1),
    )


class MlpCall:
    """Both linears on the GPU; y and the workspace are fenced with guard bytes and filled with NaN."""

    def __init__(self, lib: Library, mlp: Mlp) -> None:
        import torch

        self.lib, self.mlp = lib, mlp
        self.fc1, self.fc2 = Call(lib, mlp.fc1), Call(lib, mlp.fc2)
        self.params = MlpParams(fc1=self.fc1.params, fc2=self.fc2.params)
        p, size = self.params, ctypes.c_size_t()
        p.fc1.y = p.fc1.workspace = p.fc2.x = p.fc2.workspace = None
        p.fc1.workspace_bytes = p.fc2.workspace_bytes = 0
        assert lib.c.svdq_mlp_workspace_bytes(ctypes.byref(p), ctypes.byref(size)) == OK
        self.workspace = torch.full((size.value + 512,), 0xFF, dtype=torch.uint8, device="cuda")
        p.workspace, p.workspace_bytes = self.workspace.data_ptr() + 256, size.value

    @property
    def y(self) -> torch.Tensor:
        """Guard rows, y [M, N], guard rows."""
        return self.fc2.y

    def launch(self, stream: int | None = None) -> int:
        """The status; does not synchronize."""
        import torch

        handle = torch.cuda.current_stream().cuda_stream if stream is None else stream
        return int(self.lib.c.svdq_mlp(ctypes.byref(self.params), handle))

    def result(self) -> Array:
        """y [M, N] after checking that nothing was written around it or around the workspace."""
        y = self.fc2.result()
        for fence in (self.workspace[:256], self.workspace[-256:]):
            assert bool((fence == 0xFF).all()), "written outside of the workspace"
        return y

    def run(self) -> Array:
        """Launch, check the status, return y."""
        status = self.launch()
        assert status == OK, f"{self.lib.c.svdq_status_string(status)} cuda={self.lib.c.svdq_last_cuda_error()}"
        return self.result()

    def chain(self) -> Array:
        """y of two calls of svdq_linear."""
        return Call(self.lib, self.mlp.fc2.with_x(self.fc1.run())).run()
