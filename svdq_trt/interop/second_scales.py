"""The second level of nvfp4's scales: our f32 per row, [N], as the scales that nunchaku and its heirs have for it.

    wtscale · wcscales        one number, and one of 16 bits per row; either may be left out and is then 1
    wcscales alone            in f16 our scales, down to 1e-8, are no normal numbers: a power of two per row goes from
                              the e4m3 scales into them, which is exact unless an e4m3 scale then falls below 2^-9

Letters: N output features, K input features.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svdq_trt.contract.formats import FP8_MAX
from svdq_trt.contract.numerics import E4M3

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_MOST = 14  # powers of two that e4m3's normal numbers have below their largest


class Second(NamedTuple):
    """Both levels as another tool has them.

    Attributes:
        wscale: e4m3 bytes [K/64, N, 4]. whole: wtscale [1] or None. columns: wcscales [N] of 16 bits or None.
        exact: what these cannot hold. lost: what cannot be restored, in words; "" where nothing is.
    """

    wscale: Tensor
    whole: Tensor | None
    columns: Tensor | None
    exact: dict[str, Any]
    lost: str = ""


def write(wscale: Tensor, wscale2: Tensor, half: torch.dtype, tensor_scale: bool, exact: dict[str, Any]) -> Second:
    """Both levels as a reader of them wants them.

    Args:
        wscale: e4m3 bytes [K/64, N, 4]. wscale2: [N] f32. half: the dtype of wcscales.
        tensor_scale: the reader takes wtscale; else wcscales has it all, and is always there.
        exact: of the import, if the weights were imported: dtypes of the scales in that file.
    """
    if not tensor_scale:
        return _in_columns(wscale, wscale2, half)
    if ("wtscale" in exact or "wcscales" in exact) and (found := _as_it_was(wscale2, exact)) is not None:
        return Second(wscale, *found, {})
    if bool((wscale2 == wscale2[0]).all()):
        return Second(wscale, None if wscale2[0] == 1 else wscale2[:1].clone(), None, {})
    if torch.equal((columns := wscale2.to(half)).float(), wscale2):
        return Second(wscale, None, columns, {})
    largest = wscale2.abs().max()
    return Second(wscale, largest.reshape(1), (wscale2 / largest).to(half), {})


def _as_it_was(wscale2: Tensor, exact: dict[str, Any]) -> tuple[Tensor | None, Tensor | None] | None:
    """The wtscale and wcscales with the dtypes and values of the file; None where they no longer give wscale2."""
    try:
        kind, value = exact.get("wtscale") or ("F32", 1.0)
        whole = torch.tensor([float(value)]).to(_DTYPES[kind])
        columns = (wscale2 / whole.float()).to(_DTYPES[exact.get("wcscales") or "F32"])
    except (KeyError, TypeError, ValueError):
        return None
    if "wcscales" not in exact:
        columns = torch.ones_like(wscale2)
    if not torch.equal(whole.float() * columns.float(), wscale2):
        return None
    return whole if "wtscale" in exact else None, columns if "wcscales" in exact else None


def _in_columns(wscale: Tensor, wscale2: Tensor, half: torch.dtype) -> Second:
    """All of wscale2 in columns of normal numbers of `half`."""
    power = torch.ceil(math.log2(torch.finfo(half).tiny) - torch.log2(wscale2)).clamp(0, _MOST)
    columns = (wscale2 * torch.exp2(power)).to(half)
    shifted = _times(wscale, torch.exp2(-power))
    rounded = int((_times(shifted, torch.exp2(power)) != wscale).sum())
    lost = f"{rounded} of {wscale.numel()} group scales rounded, for scales of rows that fit {half}" if rounded else ""
    known = bool((wscale2 == wscale2[0]).all()) and not torch.equal(columns.float(), wscale2)
    return Second(shifted, None, columns, {"tensor_scale": float(wscale2[0])} if known else {}, lost)


def _times(wscale: Tensor, factor: Tensor) -> Tensor:
    """E4m3 bytes [K/64, N, 4] with a factor per row, rounded."""
    return (wscale.view(E4M3).float() * factor[:, None]).to(E4M3).view(torch.int8)


def restore(wscale: Tensor, at: Tensor, wscale2: Tensor, known: Any) -> tuple[Tensor, Tensor]:
    """Both levels, wscale [K/64, N padded, 4] and wscale2 [N], with the tensor scale `known` if they came from it.

    Args:
        at: [N] the rows of wscale that wscale2 is of.
        known: `Second.exact["tensor_scale"]`, of a file that this tool wrote; anything else is not used.
    """
    if not isinstance(known, float) or not 0 < known < math.inf:
        return wscale, wscale2
    power = torch.round(torch.log2(wscale2 / known))
    close = (wscale2 - known * torch.exp2(power)).abs() <= wscale2 * torch.finfo(torch.bfloat16).eps
    whole = wscale.clone()
    whole[:, at] = _times(wscale[:, at], torch.exp2(power))
    fits = whole.view(E4M3).float().abs() < FP8_MAX + 1  # NaN does not
    if not bool(close.all()) or not bool(fits.all()):
        return wscale, wscale2
    return whole, torch.full_like(wscale2, known)
