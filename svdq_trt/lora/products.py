"""LoHa and LoKr: changes that are products of small matrices, and in general of full rank.

| kind | parts | change of W |
|---|---|---|
| LoHa | hada_w1_a ... hada_w2_b, hada_t1, hada_t2 | s · (w1_a · w1_b) ⊙ (w2_a · w2_b) |
| LoKr | lokr_w1, lokr_w2, each whole or as two factors | s · w1 ⊗ w2 |

Sources: LyCORIS' functional/{loha,lokr}.py, PEFT's tuners/{loha,lokr}/layer.py; tests compare with both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from svdq_trt.lora.changes import Additive, Sizes
from svdq_trt.lora.delta import Delta


class Hadamard(Additive):
    """LoHa: the elementwise product of two low-rank matrices."""

    kind = "LoHa"

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Rank: inner size of each product."""
        return sizes["hada_w1_b"][0]

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        rank = sizes["hada_w1_b"][0] if sizes["hada_w1_b"] else 0
        tucker = "hada_t1" in sizes
        a, b = ((rank, shape[0]), (rank, shape[1])) if tucker else ((shape[0], rank), (rank, math.prod(shape[1:])))
        want: dict[str, tuple[int, ...]] = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
        if tucker:
            want |= {"hada_t1": (rank, rank, *shape[2:]), "hada_t2": (rank, rank, *shape[2:])}
        return _first_misfit(sizes, want)

    def delta(self) -> Delta:
        """[N, K]."""
        one, two = (self._product(f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
        return Delta(full=(one * two * self.scale).reshape(self.shape[0], -1))

    def _product(self, a: str, b: str, t: str) -> Tensor:
        if t in self.parts:
            return torch.einsum("ijkl,jr,ip->prkl", self._read(t), self._read(b), self._read(a))
        return self._read(a) @ self._read(b)


class Kronecker(Additive):
    """LoKr: the Kronecker product of two matrices, each whole or as two factors."""

    kind = "LoKr"

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Rank of the factors; None where both matrices are whole."""
        found = sizes.get("lokr_w2_b") or sizes.get("lokr_w1_b")
        return found[0] if found else None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        one, two = cls._size(sizes, "lokr_w1"), cls._size(sizes, "lokr_w2")
        if len(one) != 2 or len(two) not in (2, len(shape), 4):
            return f"factors {list(one)} and {list(two)} of a layer {list(shape)}"
        product = (one[0] * two[0], one[1] * two[1], *two[2:])
        flat = (product[0], math.prod(product[1:]))
        same_order = product[1] == shape[1] or len(two) == 2
        if flat != (shape[0], math.prod(shape[1:])) or not same_order:
            return f"factors {list(one)} and {list(two)}, a layer {list(shape)}"
        return ""

    @staticmethod
    def _size(sizes: Sizes, part: str) -> tuple[int, ...]:
        """Size of a matrix, from its factors where it is not whole; () where they do not fit each other."""
        if part in sizes:
            return sizes[part]
        a, b, t = sizes[f"{part}_a"], sizes[f"{part}_b"], sizes.get("lokr_t2") if part == "lokr_w2" else None
        if len(a) != 2 or len(b) < 2:
            return ()
        if t is not None:  # a [r, N], b [r, C], t [r, r, kh, kw]
            return (a[1], b[1], *t[2:]) if len(b) == 2 and t[:2] == (a[0], b[0]) and len(t) == 4 else ()
        return (a[0], *b[1:]) if a[1] == b[0] else ()

    def delta(self) -> Delta:
        """[N, K]."""
        one, two = self._matrix("lokr_w1"), self._matrix("lokr_w2")
        one = one.view(*one.shape, *(1,) * (two.ndim - 2))
        return Delta(full=(torch.kron(one, two.contiguous()) * self.scale).reshape(self.shape[0], -1))

    def _matrix(self, part: str) -> Tensor:
        if part in self.parts:
            return self._read(part)
        a, b = self._read(f"{part}_a"), self._read(f"{part}_b")
        if part == "lokr_w2" and "lokr_t2" in self.parts:
            return torch.einsum("ijkl,jr,ip->prkl", self._read("lokr_t2"), b, a)
        return (a @ b.flatten(1)).view(a.shape[0], *b.shape[1:])


def _first_misfit(sizes: Sizes, want: Sizes) -> str:
    for part, size in want.items():
        if sizes[part] != size:
            return f"{part} {list(sizes[part])}, want {list(size)}"
    return ""
