"""One of our artifacts -> tensors and metadata of a nunchaku file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.artifact.svdq_file import Artifact, Node
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import NVFP4, W4A16, Activation
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import awq, w4a4
from svdq_trt.interop.container import HINTS
from svdq_trt.interop.exact import difference, same_bits
from svdq_trt.interop.families import Family
from svdq_trt.interop.layers import Layer, family_for, layers_of
from svdq_trt.interop.layouts import NEW, OLD
from svdq_trt.interop.result import GELU_SHIFT, Exported, member_rows, shifted_bias
from svdq_trt.interop.w4a4 import Exact, Linear4, Written
from svdq_trt.models import LinearGroup, ModelSpec


def write_nunchaku(loaded: Artifact, spec: ModelSpec) -> Exported:
    """Everything of an artifact in nunchaku's format, with the key names that its loader of the family reads.

    Raises:
        UnsupportedError: a layer that nunchaku runs otherwise, or a model that it does not run.
        ArtifactError: a format that it has not.
    """
    family = family_for(spec)
    came_from = loaded.meta.get("nunchaku")
    return _Export(loaded, spec, family, came_from if isinstance(came_from, dict) else {}).run()


class _Export:
    def __init__(self, loaded: Artifact, spec: ModelSpec, family: Family, came_from: Mapping[str, Any]) -> None:
        self.loaded, self.spec, self.family, self.came_from = loaded, spec, family, came_from
        self.layout = OLD if family.old_keys else NEW
        self.module = spec.build(device="meta")
        self.groups = {g.node: g for g in spec.groups(self.module)}
        exact = came_from.get("layers")
        self.exact: Mapping[str, Any] = exact if isinstance(exact, dict) else {}
        self.pending = {node.name: node for node in loaded.nodes}
        self.used: set[str] = set()  # names of the artifact's tensors
        self.linears: dict[str, tuple[Layer, Linear4, Exact]] = {}  # 4-bit ones to be written, by their names there
        self.hints: dict[str, Exact] = {}
        self.out = Exported()

    def run(self) -> Exported:
        """Layers of the table, then nodes that nunchaku keeps in 16 bit, then all other tensors."""
        for layer in layers_of(self.family, self.module, tuple(self.groups.values())):
            self._layer(layer)
        rank = max((linear.weights.rank for _, linear, _ in self.linears.values()), default=0)
        for name, (layer, linear, hint) in self.linears.items():  # nunchaku has one rank for all of a model
            same_rank = linear._replace(weights=linear.weights.with_rank(rank))
            written = w4a4.write(name, same_rank, self.layout, layer.rows, layer.biased, self.family.tensor_scale)
            self._add(name, written._replace(exact=written.exact | hint))
        for node in list(self.pending.values()):
            self._as_dense(node)
        for name, tensor in self.loaded.tensors.items():
            if name not in self.used:
                self.out.tensors[name] = tensor
        self.out.metadata = self._metadata(rank)
        return self.out

    def _layer(self, layer: Layer) -> None:
        name = layer.old if self.family.old_keys else layer.new
        nodes = [n for n in self.pending.values() if layer.serves(self._group(n))]
        if not layer.row.quantized:
            for node in nodes:
                self._as_dense(node)
            self._stack_dense(layer, name)
            return
        exact = self.exact.get(layer.new, {})
        linear = Linear4(self._gather(layer, nodes), exact if isinstance(exact, dict) else {})
        if layer.row.chunks:
            written, same = awq.write(name, linear, layer.row.chunks, layer.biased)
            if not same:
                self.out.notes.append(
                    f"{name}: rounded again, as nunchaku has neither smoothing nor a low-rank branch there."
                )
            self._add(name, written)
        else:
            self.linears[name] = (layer, *self._with_sign(layer, name, linear, nodes))

    def _add(self, name: str, written: Written) -> None:
        self.out.tensors |= written.tensors
        if written.exact:
            self.hints[name] = written.exact
        if written.lost:
            self.out.notes.append(f"{name}: {written.lost}.")

    def _group(self, node: Node) -> LinearGroup:
        return self.groups.get(node.name) or LinearGroup(node.name, node.members, Activation(node.activation))

    def _gather(self, layer: Layer, nodes: list[Node]) -> SvdqWeights:
        """The layer's weights as one linear, from one node or from several that share their smoothing."""
        covered = [m for node in nodes for m in node.members]
        if sorted(covered) != sorted(layer.members):
            return self._from_dense(layer)
        parts = [self._take(node) for node in nodes]
        first = parts[0]
        if any(p.format is not first.format or not same_bits(p.act_mul, first.act_mul) for p in parts):
            raise UnsupportedError(
                f"'{layer.members[0]}' and its siblings",
                "smoothed each in its own way",
                "one smoothing: nunchaku stacks them",
                "Quantize the model with svdq-trt build.",
            )
        whole = first if len(parts) == 1 else SvdqWeights.stack(parts)
        rows = tuple(r for node in nodes for r in node.member_rows)
        return whole.rows(member_rows(tuple(covered), rows, layer.members))

    def _take(self, node: Node) -> SvdqWeights:
        del self.pending[node.name]
        weights = node.weights(self.loaded.tensors)
        self.used |= weights.named(node.name).keys()
        return weights

    def _from_dense(self, layer: Layer) -> SvdqWeights:
        """An adaLN linear that we keep in 16 bit, rounded; anything else nunchaku does not run in 16 bit."""
        if not layer.row.chunks:
            raise UnsupportedError(
                f"'{layer.members[0]}'",
                "kept in 16 bit, or only a part of it quantized",
                "4 bit: nunchaku runs it in no other way",
                "Quantize it, without --skip or --rank auto.",
            )
        (member,) = layer.members
        weight = self._dense_tensor(f"{member}.weight")
        qw = numerics.quantize_weight(weight.float(), W4A16, weight.dtype)
        n, k = weight.shape
        bias = self._dense_tensor(f"{member}.bias") if layer.biased else weight.new_zeros(n)
        self.out.notes.append(f"{member}: rounded to 4 bit, which nunchaku has there.")
        return SvdqWeights(
            qweight=qw.qweight,
            wscale=qw.wscale,
            act_mul=weight.new_ones(k),
            lora_down=weight.new_zeros(0, k),
            lora_up=weight.new_zeros(n, 0),
            bias=bias,
            wscale2=qw.wscale2,
            format=W4A16,
        )

    def _dense_tensor(self, name: str) -> Tensor:
        self.used.add(name)
        return self.loaded.tensors[name]

    def _with_sign(self, layer: Layer, name: str, linear: Linear4, nodes: list[Node]) -> tuple[Linear4, Exact]:
        """Nunchaku quantizes a GELU's output shifted, to u4: the bias then takes back what the shift adds."""
        shifts = {node.act_shift if node.act_unsigned else 0.0 for node in nodes}
        weights = linear.weights
        want = GELU_SHIFT if layer.row.unsigned and weights.format.unsigned_codes else 0.0
        if shifts == {want}:
            return linear, {}
        if shifts == {0.0}:
            shifted = replace(weights, bias=shifted_bias(weights, want))
            lost = difference(shifted_bias(shifted, -want), weights.bias)
            return linear._replace(weights=shifted), {"signed": True} | ({"bias": lost} if lost else {})
        raise UnsupportedError(f"'{name}'", f"activation shift {max(shifts):g}", f"{want:g}, which nunchaku has there")

    def _as_dense(self, node: Node) -> None:
        """A node that nunchaku keeps in 16 bit: its members' weights, dequantized."""
        taken = self._take(node)
        weight = taken.dequantize().to(self.spec.torch_dtype)
        bias = shifted_bias(taken, -node.act_shift) if node.act_shift else taken.bias
        for member in node.members:
            at = member_rows(node.members, node.member_rows, (member,))
            target = self.module.get_submodule(member)
            self.out.tensors[f"{member}.weight"] = weight[at].reshape(tuple(_weight(target).shape))
            if getattr(target, "bias", None) is not None:
                self.out.tensors[f"{member}.bias"] = bias[at].contiguous()
        self.out.notes.append(f"{node.name}: dequantized, as nunchaku keeps it in 16 bit.")

    def _stack_dense(self, layer: Layer, name: str) -> None:
        """A 16-bit layer under nunchaku's name, stacked and with channels last where it has them so."""
        for leaf in ("weight", "bias"):
            source = self.loaded.tensors | self.out.tensors
            if not all(f"{m}.{leaf}" in source for m in layer.members):
                continue
            stacked = torch.cat([source[f"{m}.{leaf}"] for m in layer.members])
            if leaf == "weight" and stacked.ndim == 4:
                stacked = stacked.permute(0, 2, 3, 1)
            if layer.row.layout != "stacked":
                full = stacked.new_zeros((layer.rows.total, *stacked.shape[1:]))
                full[layer.rows.at] = stacked
                stacked = full
            for member in layer.members:
                self.used.add(f"{member}.{leaf}")
                self.out.tensors.pop(f"{member}.{leaf}", None)
            self.out.tensors[f"{name}.{leaf}"] = stacked.contiguous()

    def _metadata(self, rank: int) -> dict[str, str]:
        known = self.came_from.get("metadata")
        metadata = {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}
        config = {"_class_name": self.spec.model_class().__name__, **self.spec.config}
        fp4 = any(n.format == NVFP4.name for n in self.loaded.nodes)
        number = {"dtype": "fp4_e2m1_all" if fp4 else "int4", "group_size": 16 if fp4 else 64}
        quantization = {
            "method": "svdquant",
            "weight": number | {"scale_dtype": [None, "fp8_e4m3_nan"] if fp4 else None},
            "activation": number | {"scale_dtype": "fp8_e4m3_nan" if fp4 else None},
            "rank": rank,
        }
        metadata.setdefault("config", json.dumps(config))
        metadata.setdefault("comfy_config", "{}")
        metadata.setdefault("model_class", self.family.model_class)
        metadata.setdefault("quantization_config", json.dumps(quantization))
        if self.hints:
            metadata[HINTS] = json.dumps({"version": 1, "layers": self.hints})
        return metadata


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
