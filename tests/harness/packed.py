"""The weight that a module with nunchaku's parameters computes with, as its kernels read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdq_trt.contract.numerics import E4M3, e2m1_values, unpack_nibbles
from svdq_trt.interop.packing import FRAGMENTS


def w4a4_weight(linear: Any) -> Tensor:
    """[N, K] f64 of an SVDQW4A4Linear of nunchaku, of diffusers, or of cache-dit, which are alike."""
    n, k, r = linear.out_features, linear.in_features, linear.rank
    codes = unpack_nibbles(FRAGMENTS.codes.unpack(linear.qweight, (n, k // 2)))
    if linear.precision == "nvfp4":
        scale = FRAGMENTS.micro.unpack(linear.wscales.view(torch.int8), (k // 64, n, 4)).view(E4M3)
        steps = scale.double().transpose(0, 1).flatten(1) * float(linear.wtscale)
        steps = steps * FRAGMENTS.channels.unpack(linear.wcscales, (n,)).double()[:, None]
        values = e2m1_values(codes).double()
    else:
        steps = FRAGMENTS.scales.unpack(linear.wscales, (k // 64, n)).T.double()
        values = ((codes ^ 8).to(torch.int8) - 8).double()
    residual = values * steps.repeat_interleave(linear.group_size, 1)
    smooth = FRAGMENTS.channels.unpack(linear.smooth_factor, (k,)).double()
    up = FRAGMENTS.up.unpack(linear.proj_up, (n, r)).double()
    return residual / smooth + up @ FRAGMENTS.down.unpack(linear.proj_down, (r, k)).double()
