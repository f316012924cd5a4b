"""An artifact as modules: one node, or the whole quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Size, Tensor, nn

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.errors import ArtifactError
from svdq_trt.models import LinearGroup, member_tensors
from svdq_trt.nn.linear import SVDQLinear

if TYPE_CHECKING:
    from svdq_trt.models import ModelSpec


def layer_of(node: Node, tensors: Mapping[str, Tensor]) -> SVDQLinear:
    """The module of a node, from the tensors of its svdq_file."""
    return SVDQLinear(node.weights(tensors))


def restore_model(loaded: svdq_file.Artifact, spec: ModelSpec) -> nn.Module:
    """The quantized module of an artifact: structure on meta, tensors memory-mapped."""
    module = spec.build(device="meta")
    groups = spec.groups(module, tuple(loaded.meta.get("skip", ())))
    # Imported linears that share no smoothing are nodes of their own, though the recipe would fuse them.
    by_node = {m: LinearGroup(m, (m,)) for g in groups if len(g.members) > 1 for m in g.members}
    by_node |= {group.node: group for group in groups}
    shapes = {group.node: [w.shape for w in member_tensors(module, group)[0]] for group in by_node.values()}
    installed: set[str] = set()
    for node in loaded.nodes:
        group = by_node.get(node.name)
        if group is None or not _is_of(node, group, shapes[node.name]) or installed & {node.name, *_whole(group)}:
            known = f"the nodes of model {spec.name}"
            raise ArtifactError("svdq.safetensors", f"node {node.name}", known, svdq_file.REMAKE)
        installed |= {node.name, *_whole(group)}
        spec.install(module, group, layer_of(node, loaded.tensors))
    for name, want in module.state_dict().items():
        got = loaded.tensors.get(name)
        if got is not None and (got.shape != want.shape or got.dtype != want.dtype):
            raise ArtifactError(
                "svdq.safetensors",
                f"{name} is {got.dtype} {list(got.shape)}",
                f"{want.dtype} {list(want.shape)}",
                svdq_file.REMAKE,
            )
    result = module.load_state_dict(loaded.tensors, strict=False, assign=True)
    if result.missing_keys or result.unexpected_keys:
        name = (result.missing_keys or result.unexpected_keys)[0]
        raise ArtifactError(
            "svdq.safetensors", f"{name} missing or unknown", f"the tensors of {spec.name}", svdq_file.REMAKE
        )
    return module.eval()


def _is_of(node: Node, group: LinearGroup, shapes: Sequence[Size]) -> bool:
    """Is the node the group's, in its sizes and in what it computes; `shapes` are its members' weights' [N, K]."""
    return (
        node.members == group.members
        and node.activation == group.activation.value
        and [(n, node.k) for n in node.member_rows] == [tuple(shape) for shape in shapes]
    )


def _whole(group: LinearGroup) -> tuple[str, ...]:
    """Members that no other node may have; those split by columns or rows belong to several."""
    return group.members if group.columns is None and group.rows is None else ()
