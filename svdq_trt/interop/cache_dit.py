"""cache-dit's SVDQuant file: linears under diffusers' names in nunchaku's order and padding, and nothing else.

The header's `cache_dit_svdq_ptq` names them. Activations are signed; of nvfp4 there is no `wtscale`. The model's other
parameters come from a 16-bit checkpoint.
"""

from __future__ import annotations

from typing import Any

from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.checkpoint.load import Weights
from svdq_trt.interop.container import header_object
from svdq_trt.interop.layouts import NEW
from svdq_trt.interop.linears import Found, Ordered, read_linears
from svdq_trt.interop.order import Order
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import Imported
from svdq_trt.models import ModelSpec

MARK = "cache_dit_svdq_ptq"
_VERSION = 2


def read_cache_dit(reader: Reader, spec: ModelSpec, rest: Weights | None) -> Imported:
    """Everything in the file, checked against the model, and the rest of it.

    Raises:
        UsageError: no 16-bit checkpoint for the rest.
        ArtifactError, ShapeError, RangeError: naming what does not fit.
    """
    source = _File(reader, spec)
    if rest is None:
        raise UsageError(
            str(reader.where),
            "quantized layers alone",
            "a 16-bit checkpoint for the others",
            "Give it with --checkpoint.",
        )
    return read_linears(source, spec, rest)


class _File(Ordered):
    def __init__(self, reader: Reader, spec: ModelSpec) -> None:
        super().__init__(reader, spec, NEW, Order.FRAGMENTS)
        where, said = f"{reader.where}: metadata '{MARK}'", header_object(reader, MARK)
        if said.get("version") != _VERSION:
            raise ArtifactError(where, f"version {said.get('version')!r:.60}", str(_VERSION))
        names: Any = said.get("quantized_layer_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ArtifactError(where, f"quantized_layer_names {names!r:.60}", "a list of module names")
        self.names, self.where, self.precision = set(names), where, said.get("precision")

    def quantized(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str, n: int, k: int) -> Found:
        weights = self.read_w4a4(name, (n,), k)
        if weights.format.name != self.precision:
            raise ArtifactError(
                self.where, f"precision {self.precision!r:.60}", f"{weights.format.name}, as '{name}' is"
            )
        return Found(weights)
