"""A nunchaku checkpoint -> nodes and 16-bit tensors of one of our models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import awq, w4a4
from svdq_trt.interop.container import HINTS, header_object, hints_of
from svdq_trt.interop.exact import restore
from svdq_trt.interop.families import Family
from svdq_trt.interop.layers import Layer, family_for, layers_of
from svdq_trt.interop.layouts import NEW, OLD
from svdq_trt.interop.order import Order, Stored, check_order
from svdq_trt.interop.packing import TILE
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import GELU_SHIFT, Imported, fits, member_rows, shifted_bias
from svdq_trt.interop.w4a4 import Exact, Linear4
from svdq_trt.models import LinearGroup, ModelSpec

_IN_16_BIT = "16 bit in the imported checkpoint"
_NO_NODE = "4 bit in the imported checkpoint, but kept in this model: dequantized"


def read_nunchaku(reader: Reader, spec: ModelSpec) -> Imported:
    """Everything in the file, checked against the model.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit.
        UnsupportedError: a layer that this model has no place for.
    """
    family = family_for(spec)
    config = header_object(reader, "config")
    if config:
        compare_config(spec, config, f"{reader.where}: metadata 'config'", family.names)
    model_class = reader.metadata.get("model_class", family.model_class)
    if model_class not in family.names:
        raise ArtifactError(f"{reader.where}: metadata 'model_class'", f"{model_class!r:.60}", family.model_class)
    _require_originals(reader)
    quantization = header_object(reader, "quantization_config")
    module = spec.build(device="meta")
    groups = spec.groups(module)
    stored = [Stored(n, x.rows, x.k, TILE) for x in layers_of(family, module, groups) for n in sorted({x.old, x.new})]
    check_order(reader, stored, Order.FRAGMENTS, bool(quantization) or HINTS in reader.metadata)
    return _Import(reader, spec, family, module, groups, quantization).run()


def _require_originals(reader: Reader) -> None:
    """Refuse a layer without the smoothing's original: nunchaku's loaders ask for it, its heirs' files have none."""
    for layout in (OLD, NEW):
        for name in (n for n in reader.names if n.endswith(f".{layout.smooth}")):
            want = f"{name.removesuffix(layout.smooth)}{layout.smooth_orig}"
            if not reader.has(want):
                got = f"no '{want}', as files of Nunchaku Lite have none"
                raise UnsupportedError(str(reader.where), got, "nunchaku's own file, or a folder with config.json")


class _Import:
    """One import; `left` are the model's parameters that no layer has given yet.

    `assumed_unsigned` are layers behind a GELU of which the file does not say that their codes were signed.
    """

    def __init__(
        self,
        reader: Reader,
        spec: ModelSpec,
        family: Family,
        module: nn.Module,
        groups: tuple[LinearGroup, ...],
        quantization: dict[str, Any],
    ) -> None:
        self.reader, self.spec, self.dtype = reader, spec, spec.torch_dtype
        self.module, self.groups, self.quantization = module, groups, quantization
        self.layers = layers_of(family, module, groups)
        self.left = {name: tuple(p.shape) for name, p in module.state_dict().items()}
        self.hints = hints_of(reader)
        self.exact: dict[str, Exact] = {}
        self.assumed_unsigned: list[str] = []
        self.out = Imported()

    def run(self) -> Imported:
        for layer in self.layers:
            self._layer(layer)
        self.out.tensors |= self.reader.take_tables(self.spec, self.left)
        for name, shape in sorted(self.left.items()):
            self.out.tensors[name] = self.reader.take_half(name, shape, self.spec.weight_dtype(name))
        self.reader.refuse_leftovers(self.spec.name)
        self._check_quantization()
        keep = {
            key: self.reader.metadata[key]
            for key in ("config", "comfy_config", "model_class", "quantization_config")
            if key in self.reader.metadata
        }
        self.out.meta = {"nunchaku": {"layers": self.exact, "metadata": keep}}
        self.out.finish(self.spec, self.groups)
        if names := self.assumed_unsigned:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.out.notes.append(
                f"{names[0]}{more}: read as taking unsigned activation codes, as nunchaku runs "
                "layers behind a GELU; the file does not say."
            )
        return self.out

    def _layer(self, layer: Layer) -> None:
        name = self._name(layer)
        if not self.reader.has(f"{name}.qweight"):
            self._dense(layer, name)
            return
        if not layer.row.quantized:
            raise UnsupportedError(f"{self.reader.where}: '{name}'", "quantized", "16 bit, as nunchaku has it")
        hints = self.hints.get(name, {})
        if self.reader.has(f"{name}.wzeros"):
            linear = awq.read(self.reader, name, sum(layer.n), layer.k, max(layer.row.chunks, 1), self.dtype, hints)
        else:
            layout = w4a4.layout_of(self.reader, name)
            linear = w4a4.read(self.reader, name, layout, layer.rows, layer.k, self.dtype, hints)
        unsigned = layer.row.unsigned and linear.weights.format.unsigned_codes
        if unsigned and hints.get("signed") is True:  # ours, shifted for nunchaku: undo it
            linear, unsigned = _unshifted(linear, hints), False
        if unsigned:
            self.assumed_unsigned.append(name)
        if linear.exact:
            self.exact[layer.new] = linear.exact
        served = [g for g in self.groups if layer.serves(g)]
        if served and fits(linear.weights, layer.k):
            self._nodes(layer, linear.weights, served, unsigned)
        else:
            self._dequantized(layer, linear.weights, unsigned)

    def _name(self, layer: Layer) -> str:
        """The one of its two names that the file has."""
        found = {n for n in (layer.old, layer.new) if any(self.reader.has(f"{n}.{t}") for t in ("qweight", "weight"))}
        if len(found) > 1:
            raise ArtifactError(str(self.reader.where), f"both '{layer.old}' and '{layer.new}'", "one of them")
        return found.pop() if found else layer.new

    def _nodes(self, layer: Layer, weights: SvdqWeights, served: list[LinearGroup], unsigned: bool) -> None:
        done: set[str] = set()
        for group in served:
            at = member_rows(layer.members, layer.n, group.members)
            whole = group.members == layer.members
            rows = tuple(n for m in group.members for name, n in zip(layer.members, layer.n, strict=True) if name == m)
            self.out.add_node(group, weights if whole else weights.rows(at), rows, unsigned)
            done |= set(group.members)
        for member in layer.members:
            if member not in done:
                at = member_rows(layer.members, layer.n, (member,))
                self._give_weight(member, weights.rows(at), _NO_NODE, unsigned)
            else:
                self.left.pop(f"{member}.weight", None)
                self.left.pop(f"{member}.bias", None)

    def _dequantized(self, layer: Layer, weights: SvdqWeights, unsigned: bool) -> None:
        if layer.row.part is not None:
            raise UnsupportedError(
                layer.members[0], "half of it quantized, but kept whole in this model", "a model that splits it"
            )
        for member in layer.members:
            at = member_rows(layer.members, layer.n, (member,))
            self._give_weight(member, weights.rows(at), _NO_NODE, unsigned, layer.k)

    def _give_weight(
        self, member: str, weights: SvdqWeights, reason: str, unsigned: bool, k: int | None = None
    ) -> None:
        """16-bit weight and bias of a member from its quantized form."""
        weight = weights.dequantize()[:, :k]
        shape = self.left.pop(f"{member}.weight")
        self.out.tensors[f"{member}.weight"] = weight.reshape(shape).to(self.dtype)
        bias = shifted_bias(weights, -GELU_SHIFT) if unsigned else weights.bias
        if self.left.pop(f"{member}.bias", None) is not None:
            self.out.tensors[f"{member}.bias"] = bias
        elif bool(bias.any()):
            raise UnsupportedError(f"{self.reader.where}: '{member}'", "a bias", "none: this model's layer has none")
        self.out.kept[member] = reason

    def _dense(self, layer: Layer, name: str) -> None:
        """A layer that is in 16 bit, perhaps under another name, stacked, or with its channels last."""
        if layer.row.part is not None:
            raise UnsupportedError(
                f"{self.reader.where}: '{name}'",
                "not quantized",
                "a quantized layer: in 16 bit it cannot be told from its other half",
            )
        for leaf in ("weight", "bias"):
            shapes = [self.left.get(f"{m}.{leaf}") for m in layer.members]
            known = [s for s in shapes if s is not None]
            if len(known) < len(shapes):
                continue
            separate = [m for m in layer.members if self.reader.has(f"{m}.{leaf}")]
            if name not in layer.members and len(separate) == len(layer.members):
                continue  # under diffusers' own names: read with the rest
            rest = known[0][1:]
            stacked = self.reader.take_half(f"{name}.{leaf}", self._stored_shape(layer, leaf, known), self.dtype)
            if leaf == "weight" and len(rest) == 3:
                stacked = stacked.permute(0, 3, 1, 2).contiguous()
            stacked = stacked[layer.rows.at] if layer.row.layout != "stacked" else stacked
            for member, part in zip(layer.members, stacked.split(list(layer.n)), strict=True):
                self.out.tensors[f"{member}.{leaf}"] = part.contiguous()
                del self.left[f"{member}.{leaf}"]
        for member in layer.members:
            if any(layer.serves(g) for g in self.groups):
                self.out.kept[member] = _IN_16_BIT

    def _stored_shape(self, layer: Layer, leaf: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        rows = layer.rows.total if layer.row.layout != "stacked" else sum(s[0] for s in shapes)
        rest = shapes[0][1:]
        return (rows, *rest[1:], rest[0]) if leaf == "weight" and len(rest) == 3 else (rows, *rest)

    def _check_quantization(self) -> None:
        """The header's description against the tensors."""
        where = f"{self.reader.where}: metadata 'quantization_config'"
        weight = self.quantization.get("weight")
        got = {
            "method": self.quantization.get("method"),
            "weight.dtype": weight.get("dtype") if isinstance(weight, dict) else None,
            "weight.group_size": weight.get("group_size") if isinstance(weight, dict) else None,
            "rank": self.quantization.get("rank"),
        }
        four_bit = [n for n in self.out.nodes if n.format != "w4a16"]
        fp4 = any(n.format == "nvfp4" for n in four_bit)
        want: dict[str, Any] = {
            "method": "svdquant",
            "weight.dtype": "fp4_e2m1_all" if fp4 else "int4",
            "weight.group_size": 16 if fp4 else 64,
            "rank": max((n.rank for n in four_bit), default=None),
        }
        if fp4 and any(n.format == "int4" for n in four_bit):
            raise ArtifactError(str(self.reader.where), "int4 and fp4 layers", "one of them")
        for key, value in got.items():
            if value is not None and value != want[key] and four_bit:
                raise ArtifactError(where, f"{key} is {value!r:.60}", f"{want[key]!r}, as the tensors are")


def _unshifted(linear: Linear4, hints: Exact) -> Linear4:
    bias = shifted_bias(linear.weights, -GELU_SHIFT)
    known = restore(bias, hints.get("bias"))
    if bool(known.isfinite().all()):
        bias = known
    return linear._replace(weights=replace(linear.weights, bias=bias))
