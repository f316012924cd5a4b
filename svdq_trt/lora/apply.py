"""svdq.safetensors + LoRA files -> svdq.safetensors: no 4-bit code, scale or smoothing factor changes.

A quantized node's low-rank branch grows by the LoRA's rank; a layer kept in 16 bit gets the sum of its weight and
the LoRA. The quantized artifact stays as it is, so another LoRA or strength needs no new quantization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.manifest import CutEntry, LeftOut, LoraEntry, to_json
from svdq_trt.artifact.svdq_file import Artifact, Node
from svdq_trt.base.errors import RangeError
from svdq_trt.base.progress import Progress
from svdq_trt.checkpoint import Weights
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.lora.factors import Extended, Loaded, NodeRows, extend, merge_bias, merge_dense
from svdq_trt.lora.names import name_table
from svdq_trt.lora.read import Shapes, read_lora
from svdq_trt.models import ModelSpec
from svdq_trt.models.recipe import weight_layers

_OWN_RANKS = "ranks_without_loras"  # key in the artifact's metadata: node -> R
_CHANGED = "changed_by_loras"  # key there: nodes with other scales per row or another bias than the quantizer's


@dataclass(frozen=True)
class LoraRequest:
    """``--lora PATH[:STRENGTH]``."""

    path: Path
    strength: float = 1.0


def layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Weight shape of every layer of the unquantized model that a LoRA can act on, by name; costs no memory.

    Those are the linears and convolutions, except grouped convolutions: trainers don't agree on their factors.
    """
    layers = weight_layers(spec.build(device="meta")).items()
    return {
        name: tuple(m.weight.shape)
        for name, m in layers
        if isinstance(m.weight, Tensor) and getattr(m, "groups", 1) == 1
    }


def open_loras(requests: Sequence[LoraRequest], spec: ModelSpec, shapes: Shapes, allow_partial: bool) -> list[Loaded]:
    """Read the LoRA files of a build.

    Raises:
        ArtifactError: a file that is malformed, fits nothing, or (unless `allow_partial`) does not fit completely.
    """
    names = name_table(spec, shapes)
    loaded = []
    for request in requests:
        file = read_lora(request.path, names, shapes)
        if not allow_partial:
            file.require_whole(spec.name)
        file.require_any(spec.name)
        loaded.append(Loaded(file, request.strength, file.by_layer()))
    return loaded


def check_loras(requests: Sequence[LoraRequest], spec: ModelSpec, allow_partial: bool) -> bool:
    """Open the LoRA files of a build and read all of their values, so that a bad one is found before other work.

    Returns:
        whether any is made of the model's own weights, which `apply_loras` then needs.

    Raises:
        ArtifactError: see open_loras; or NaN, Inf, or a number type that factors cannot have.
    """
    loras = open_loras(requests, spec, layer_shapes(spec), allow_partial)
    for lora in loras:
        for change in lora.file.changes:
            change.check_values()
    return any(change.needs_weight for lora in loras if lora.strength for change in lora.file.changes)


def node_rows(nodes: Sequence[Node], spec: ModelSpec, skip: Sequence[str] = ()) -> dict[str, NodeRows]:
    """The rows of every quantized node's members; `skip` is what the nodes were made with."""
    groups = {g.node: g for g in spec.groups(spec.build(device="meta"), tuple(skip))}
    rows = {}
    for node in nodes:
        starts = [sum(node.member_rows[:i]) for i in range(len(node.members))]
        first, group = dict(zip(node.members, starts, strict=True)), groups[node.name]
        rows[node.name] = NodeRows(node.name, first, node.n, node.k, group.columns, group.rows)
    return rows


def apply_loras(
    source: Path,
    requests: Sequence[LoraRequest],
    spec: ModelSpec,
    allow_partial: bool,
    out: Path,
    progress: Progress,
    weights: Weights | None = None,
) -> list[LoraEntry]:
    """Write `out`: the artifact `source` with the LoRAs in it. Returns the manifest's entry for each file.

    Args:
        weights: the model's own, for changes that are made of them (see check_loras).

    Raises:
        SvdqError: see open_loras; or the rank or range of a node, which is named, cannot take them.
    """
    progress(0, 1, "reading the LoRA files")
    loras = open_loras(requests, spec, layer_shapes(spec), allow_partial)
    # At strength 0 a LoRA is left out: the result has the base's ranks and bits.
    active = [lora for lora in loras if lora.strength]
    loaded = svdq_file.load(source)
    rows = node_rows(loaded.nodes, spec, loaded.meta.get("skip", ()))
    ranks = {node.name: node.rank for node in without_loras(loaded).nodes}
    tensors: dict[str, Tensor] = dict(loaded.tensors)

    def weight_of(name: str) -> Tensor:
        if name in loaded.tensors and name.rpartition(".")[0] not in rows:  # a node's bias is not the model's
            return loaded.tensors[name]
        assert weights is not None
        return weights.read(name)

    nodes: list[Node] = []
    members: set[str] = set()
    cut: list[CutEntry] = []
    changed: list[str] = []
    for index, node in enumerate(loaded.nodes):
        members |= set(node.members)
        before = node.weights(tensors)
        new = extend(before.lora_down, before.lora_up, active, rows[node.name], weight_of)
        tensors |= _extended(before, new, node.name).contiguous().named(node.name)
        nodes.append(replace(node, rank=len(new.down)))
        if new.row_scale is not None or new.bias is not None:
            changed.append(node.name)
        if round(new.error, 5):
            cut.append(CutEntry(node.name, len(new.down), round(new.error, 5)))
        progress(index + 1, len(loaded.nodes), node.name)
    for layer in sorted({layer for lora in active for layer in lora.by_layer} - members):
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        tensors[weight] = merge_dense(tensors[weight], layer, active, weight_of)
        merged = merge_bias(tensors.get(bias), layer, active, weight_of)
        if merged is not None:
            tensors[bias] = merged
    summary = [describe(lora, members, cut) for lora in loras]
    progress(len(nodes), len(nodes), f"writing {out.name}")
    meta = {key: value for key, value in loaded.meta.items() if key not in ("version", "nodes")}
    meta |= {"loras": [to_json(lora) for lora in summary], _OWN_RANKS: ranks}
    meta[_CHANGED] = sorted({*loaded.meta.get(_CHANGED, ()), *changed})
    svdq_file.save(out, tensors, meta, nodes)
    return summary


def _extended(before: SvdqWeights, new: Extended, name: str) -> SvdqWeights:
    """A node's weights with LoRAs: their ranks, and what they do to its rows and its bias."""
    found = replace(before, lora_down=new.down, lora_up=new.up)
    if new.row_scale is None and new.bias is None:
        return found
    bias = before.bias.float()
    if new.bias is not None:
        bias = bias + new.bias
    if new.row_scale is not None:
        if before.act_shift:  # the bias undoes what the shift adds to the codes' part, which is scaled now
            bias = bias - new.row_scale * before.act_shift * (before.unpack() @ before.act_mul.float())
        found = replace(found, wscale2=before.wscale2 * (1 + new.row_scale))
    found = replace(found, bias=bias.to(before.bias.dtype))
    if not (found.bias.isfinite().all() and found.lora_up.isfinite().all()):
        raise RangeError(name, f"its bias or branch with the LoRAs overflows {found.bias.dtype}", "finite values")
    return found


def without_loras(loaded: Artifact) -> Artifact:
    """The nodes as the quantizer left them: without the ranks that `apply_loras` appended. Other layers stay.

    Nodes whose rows or bias a LoRA changed cannot be brought back, and are left out.
    """
    own, changed = loaded.meta.get(_OWN_RANKS), loaded.meta.get(_CHANGED)
    ranks: Mapping[str, Any] = own if isinstance(own, dict) else {}
    tensors, nodes = dict(loaded.tensors), []
    for node in loaded.nodes:
        if isinstance(changed, list) and node.name in changed:
            continue
        rank = ranks.get(node.name)
        if isinstance(rank, int) and 0 <= rank < node.rank:  # the header is not to be trusted
            tensors |= node.weights(tensors).with_rank(rank).named(node.name)
            node = replace(node, rank=rank)
        nodes.append(node)
    return replace(loaded, nodes=tuple(nodes), tensors=tensors)


def describe(lora: Loaded, quantized: set[str], cut: Sequence[CutEntry]) -> LoraEntry:
    """The manifest's entry for one LoRA: identity, strength, the layers that it changes and what was left out."""
    layers = sorted(lora.by_layer)
    return LoraEntry(
        file=lora.file.path.name,
        sha256=lora.file.sha256,
        strength=lora.strength,
        quantized_layers=tuple(name for name in layers if name in quantized),
        dense_layers=tuple(name for name in layers if name not in quantized),
        text_encoder_tensors=lora.file.text_encoder,
        left_out=tuple(LeftOut(name, reason) for name, reason in lora.file.problems),
        cut=tuple(cut),
    )


def merge_into(module: nn.Module, loras: Sequence[Loaded]) -> int:
    """Add LoRAs to the unquantized model's own weights, in place; returns the number of layers changed.

    The result is the model that a build with LoRAs is compared with.
    """
    layers = weight_layers(module)
    hit = sorted({layer for lora in loras for layer in lora.by_layer if lora.strength})
    # Weights are replaced, not written to, so these stay as they are.
    before = {name: parameter.detach() for name, parameter in module.named_parameters()}
    for name in hit:
        layer: Any = layers[name]
        merged = merge_dense(layer.weight.detach(), name, loras, before.__getitem__)
        layer.weight = nn.Parameter(merged, requires_grad=False)
        bias = merge_bias(None if layer.bias is None else layer.bias.detach(), name, loras, before.__getitem__)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return len(hit)
