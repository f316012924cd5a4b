"""vLLM-Omni's SVDQuant folder: nunchaku's names of tensors and their shapes, with row-major values and signed codes.

Linears are under diffusers' names, or stacked as nunchaku's Python modules have them. `wtscale` and `wcscales` are
always there for nvfp4; nothing is padded.
"""

from __future__ import annotations

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.interop.container import header_object
from svdq_trt.interop.families import family_of
from svdq_trt.interop.layers import Layer, layers_of
from svdq_trt.interop.layouts import IN_ROWS
from svdq_trt.interop.linears import Found, Ordered, read_linears
from svdq_trt.interop.order import Order
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import Imported, member_rows
from svdq_trt.models import ModelSpec


def read_vllm_omni(reader: Reader, spec: ModelSpec) -> Imported:
    """Everything in the file, checked against the model.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit. UnsupportedError: unsigned codes.
    """
    config = header_object(reader, "config") or header_object(reader, "config.json")
    quantization = config.pop("quantization_config", None) or header_object(reader, "quantization_config.json")
    if config:
        compare_config(spec, config, f"{reader.where}: config")
    if quantization.get("act_unsigned", False) is not False:  # which layers it means, nothing says
        raise UnsupportedError(f"{reader.where}: quantization_config", "act_unsigned", "signed activations")
    return read_linears(_File(reader, spec), spec)


class _File(Ordered):
    def __init__(self, reader: Reader, spec: ModelSpec) -> None:
        super().__init__(reader, spec, IN_ROWS, Order.ROWS)
        self.stacks: dict[str, Layer] = {}
        family = family_of(spec.model_class().__name__)
        if family is not None:
            module = spec.build(device="meta")
            for layer in layers_of(family, module, spec.groups(module)):
                if len(layer.members) > 1 and reader.has(f"{layer.new}.qweight"):
                    self.stacks |= dict.fromkeys(layer.members, layer)

    def quantized(self, name: str) -> bool:
        return name in self.stacks or self.reader.has(f"{name}.qweight")

    def read(self, name: str, n: int, k: int) -> Found:
        if name not in self.stacks:
            return Found(self.read_w4a4(name, (n,), k))
        layer = self.stacks[name]
        whole = self.read_w4a4(layer.new, layer.n, k)
        return Found(whole.rows(member_rows(layer.members, layer.n, (name,))))
