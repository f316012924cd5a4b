"""The C API on random linears: where the test has a GPU, and in tests/cpu on the kernels compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import torch
from kernel_calls import OK, Call, Library, LinearCall, MlpCall, bind_linear, bind_mlp

from svdq_trt.contract.ops import INPUTS
from svdq_trt.contract.reference.quant import Array
from tests.harness.linears import Linear, Mlp


def to_device(a: Array, device: str = "cuda") -> torch.Tensor:
    """A numpy array of any of our dtypes -> a tensor with a copy of its bytes."""
    if a.dtype == ml_dtypes.bfloat16:
        return to_device(a.view(np.int16), device).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(a)).to(device, copy=True)


def to_numpy(t: torch.Tensor) -> Array:
    """The way back, also a copy."""
    if t.dtype == torch.bfloat16:
        return to_numpy(t.view(torch.int16)).view(ml_dtypes.bfloat16)
    return t.cpu().numpy().copy()


def bind(library: Library, linear: Linear) -> LinearCall:
    """The linear's operands on the library's device."""
    held = {t.name: getattr(linear.weight if hasattr(linear.weight, t.name) else linear, t.name) for t in INPUTS}
    return bind_linear(
        library,
        linear.fmt.name,
        **{name: to_device(a, library.device) for name, a in held.items()},
        activation=linear.activation.name.lower(),
        act_unsigned=int(linear.unsigned),
        act_shift=linear.shift,
    )


def bind_two(library: Library, mlp: Mlp) -> MlpCall:
    """Both linears' operands; fc2's x holds nothing, and svdq_mlp does not get it."""
    return bind_mlp(bind(library, mlp.fc1), bind(library, mlp.fc2))


def result(call: Call) -> Array:
    """y [M, N_out] once all that was launched has ended, after checking that nothing was written around it."""
    if call.library.device == "cuda":
        torch.cuda.synchronize()
    call.check_fences()
    return to_numpy(call.y)


def run(library: Library, operands: Linear | Mlp, *entries: str) -> Array:
    """y [M, N_out] of one launch: of the whole, or of these functions of the C API one after the other."""
    call = bind(library, operands) if isinstance(operands, Linear) else bind_two(library, operands)
    for entry in entries or ("",):
        call.run(entry)
    return result(call)


def chain(library: Library, mlp: Mlp) -> Array:
    """y [M, N] of two calls of svdq_linear."""
    return run(library, mlp.fc2.with_x(run(library, mlp.fc1)))


def assert_right_on_two_streams(make: Callable[[], Sequence[Call]], want: list[Array], entry: str = "") -> None:
    """A hundred launches of each, in turn on two streams that have workspaces of their own: every y is compared.

    Args:
        make: makes the calls; called once a stream.
        want: their y.
        entry: for call.launch().
    """
    expected = [to_device(y.view(np.int16)) for y in want]
    streams = [torch.cuda.Stream() for _ in range(2)]
    calls = [make() for _ in streams]
    wrong = [torch.zeros((), dtype=torch.bool, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, mine, flag in zip(streams, calls, wrong, strict=True):
            with torch.cuda.stream(stream):
                for call, right in zip(mine, expected, strict=True):
                    call.workspace.inside.fill_(255)
                    assert call.launch(stream.cuda_stream, entry) == OK
                    flag.logical_or_((call.y.view(torch.int16) != right).any())
    torch.cuda.synchronize()
    assert not any(bool(flag) for flag in wrong)
