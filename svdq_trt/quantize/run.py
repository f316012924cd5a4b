"""Quantize a model group by group, in place: the 16-bit weights of a group are freed as its node is installed.

Every finished group is a file of its own in ``<artifact>.partial/``, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from svdq_trt.compile.events import Progress
from svdq_trt.errors import ArtifactError
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize import artifact
from svdq_trt.quantize.artifact import Node
from svdq_trt.quantize.layer import QuantizedLinear, quantize_group
from svdq_trt.quantize.preset import Preset
from svdq_trt.spec.formats import FORMATS, W4A16, Activation, Format

if TYPE_CHECKING:
    from svdq_trt.calibrate import Calibration
    from svdq_trt.models import LinearGroup, ModelSpec


def quantize_model(
    module: nn.Module,
    spec: ModelSpec,
    groups: Sequence[LinearGroup],
    calibration: Calibration,
    fmt: Format,
    rank: int,
    preset: Preset,
    out: Path,
    key: str,
    progress: Progress,
    skip: Sequence[str] = (),
) -> list[Node]:
    """Quantize every group of `module` and write the artifact `out`.

    Args:
        module: the 16-bit model; its quantized linears are replaced.
        groups: the nodes to make, as spec.recipe gave them for `skip`.
        calibration: tokens and absmax of every group's input.
        fmt: format of groups with quantized activations; weight-only groups take w4a16.
        key: identifies the inputs; groups finished under the same key are taken over.

    Raises:
        SvdqError: from a layer that cannot be quantized, named.
    """
    partial = out.with_name(f"{out.name}.partial") / key[:16]
    partial.mkdir(parents=True, exist_ok=True)
    nodes: list[Node] = []
    for index, group in enumerate(groups):
        progress(index, len(groups), group.node)
        shard = partial / f"{index:04d}.safetensors"
        node, layer = _resume(shard, group) or _quantize(module, spec, group, calibration, fmt, rank, preset, shard)
        spec.install(module, group, layer)
        nodes.append(node)
    progress(len(groups), len(groups), f"writing {out.name}")
    meta: dict[str, Any] = {"model": spec.name, "format": fmt.name, "rank": rank, "preset": preset.name,
                            "skip": list(skip)}  # fmt: skip
    tensors = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    artifact.save(out, tensors, meta, nodes)
    shutil.rmtree(partial.parent)
    return nodes


def _quantize(
    module: nn.Module,
    spec: ModelSpec,
    group: LinearGroup,
    calibration: Calibration,
    fmt: Format,
    rank: int,
    preset: Preset,
    shard: Path,
) -> tuple[Node, SVDQLinear]:
    linears = [module.get_submodule(name) for name in group.members]
    assert all(isinstance(linear, nn.Linear) for linear in linears)
    stats = calibration[group.node]
    quantized = quantize_group(
        [linear.weight for linear in linears], [linear.bias for linear in linears], stats.x,
        W4A16 if group.weight_only else fmt, rank, act_dtype=spec.torch_dtype, name=group.node,
        activation=group.activation, x_absmax=stats.amax, preset=preset,
    )  # fmt: skip
    node = Node.from_quantized(quantized, group.members, tuple(linear.weight.shape[0] for linear in linears))
    artifact.save(shard, {f"{group.node}.{k}": t for k, t in quantized.tensors.items()}, {}, [node])
    return node, SVDQLinear.from_quantized(quantized)


def _resume(shard: Path, group: LinearGroup) -> tuple[Node, SVDQLinear] | None:
    if not shard.exists():
        return None
    try:
        loaded = artifact.load(shard)
    except ArtifactError:
        return None
    node = loaded.nodes[0]
    return (node, layer_of(node, loaded.tensors)) if node.name == group.node else None


def layer_of(node: Node, tensors: dict[str, Any]) -> SVDQLinear:
    """The module of a node of an artifact."""
    prefix = f"{node.name}."
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    quantized = QuantizedLinear(node.name, FORMATS[node.format], Activation(node.activation), own, node.sqnr_db,
                                node.alpha, node.beta, [], node.act_unsigned, node.act_shift)  # fmt: skip
    return SVDQLinear.from_quantized(quantized)


def restore_model(loaded: artifact.Artifact, spec: ModelSpec) -> nn.Module:
    """The quantized module of an artifact: structure on meta, tensors memory-mapped."""
    module = spec.build(device="meta")
    by_node = {group.node: group for group in spec.groups(module, tuple(loaded.meta.get("skip", ())))}
    for node in loaded.nodes:
        if node.name not in by_node or by_node[node.name].members != node.members:
            raise ArtifactError("svdq.safetensors", f"node {node.name}", f"the nodes of model {spec.name}",
                                "Build again with --force.")  # fmt: skip
        own = {k: t for k, t in loaded.tensors.items() if k.startswith(node.name + ".")}
        spec.install(module, by_node[node.name], layer_of(node, own))
    result = module.load_state_dict(loaded.tensors, strict=False, assign=True)
    if result.missing_keys or result.unexpected_keys:
        name = (result.missing_keys or result.unexpected_keys)[0]
        raise ArtifactError("svdq.safetensors", f"{name} missing or unknown", f"the tensors of {spec.name}",
                            "Build again with --force.")  # fmt: skip
    return module.eval()
