"""Quantize a model group by group, in place.

Every finished group is a file of its own in ``<artifact>.partial/``, so a killed run goes on where it stopped, and
several processes can share the groups: the one that writes the artifact takes the others' files over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial as partial_function
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from svdq_trt.calibrate import Calibration
from svdq_trt.calibrate.upcast import CPU
from svdq_trt.compile.crew import Alone
from svdq_trt.compile.device import ranks_on
from svdq_trt.compile.events import Progress
from svdq_trt.errors import ArtifactError
from svdq_trt.models import LinearGroup, member_tensors
from svdq_trt.nn.linear import TENSORS, SVDQLinear
from svdq_trt.quantize import artifact
from svdq_trt.quantize.artifact import Node
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import Preset
from svdq_trt.quantize.workers import Members, layer_pool, layer_weights
from svdq_trt.spec.formats import FORMATS, W4A16, Activation, Format

if TYPE_CHECKING:
    from svdq_trt.models import ModelSpec


def quantize_model(
    module: nn.Module,
    spec: ModelSpec,
    groups: Sequence[LinearGroup],
    calibration: Calibration,
    fmt: Format,
    rank: int | Mapping[str, int],
    preset: Preset,
    out: Path,
    key: str,
    progress: Progress,
    skip: Sequence[str] = (),
    read: Callable[[str], Tensor] | None = None,
    notes: Mapping[str, Any] | None = None,
    device: torch.device = CPU,
    crew: Alone | None = None,
) -> list[Node]:
    """Quantize every group of `module` and write the artifact `out`.

    Args:
        module: the 16-bit model; its quantized linears are replaced. On meta, it is never whole in memory: every
            parameter is had from `read` when its layer is quantized or written.
        groups: the nodes to make, as spec.recipe gave them for `skip`.
        calibration: tokens and absmax of every group's input.
        fmt: format of groups with quantized activations; weight-only groups take w4a16.
        rank: R that the user asked for, or R of each node by its name (allocate.py).
        key: identifies the inputs; groups finished under the same key are taken over.
        read: name -> parameter, for a module on meta; called from several threads.
        notes: more to say in the artifact's metadata.
        device: where the layers are worked on, each moved there when its turn comes. Recorded in the artifact.
        crew: the ranks that share the groups; this process alone when None. Ranks other than 0 quantize their share
            and return [].

    Raises:
        SvdqError: from a layer that cannot be quantized, named.
    """
    crew = crew or Alone()
    partial = out.with_name(f"{out.name}.partial") / key[:16]
    partial.mkdir(parents=True, exist_ok=True)
    costs = [sum(w.numel() for w in member_tensors(module, group)[0]) for group in groups]
    finished: dict[int, tuple[Node, SVDQLinear]] = {}
    total = sum(costs)
    mine = crew.share(costs)
    with (
        layer_weights(module, [groups[i] for i in mine], read, device) as sources,
        layer_pool(device, ranks_on(device)) as pool,
    ):
        work = partial_function(_one, sources, spec, calibration, fmt, rank, preset, partial, device)
        for i, (node, layer) in zip(mine, pool.map(work, [(i, groups[i]) for i in mine]), strict=True):
            finished[i] = node, layer
            count = f"{len(finished)}/{len(mine)}" + (f" of {len(groups)}" if crew.size > 1 else "")
            progress(crew.worked(costs[i]), total, f"{count}  {node.name}  {node.sqnr_db:.1f} dB")
    crew.finished()
    if crew.rank:
        return []
    crew.wait_for_all(lambda done: progress(done, total, "waiting for the other ranks"))
    nodes: list[Node] = []
    for i, group in enumerate(groups):
        node, layer = finished.pop(i) if i in finished else _of_another_rank(partial, i, group)
        spec.install(module, group, layer)
        nodes.append(node)
    progress(total, total, f"writing {out.name}")
    meta: dict[str, Any] = {
        "model": spec.name,
        "format": fmt.name,
        "rank": top_rank(rank),
        "preset": preset.name,
        "skip": list(skip),
        "device": device.type,
        **(notes or {}),
    }
    artifact.save_streamed(out, module.state_dict(), read or _nothing_on_meta, meta, nodes)
    shutil.rmtree(partial.parent)
    return nodes


def top_rank(rank: int | Mapping[str, int]) -> int:
    """The one number that says a model's rank: R asked for, or the largest of the nodes' own."""
    return rank if isinstance(rank, int) else max(rank.values(), default=0)


def _nothing_on_meta(name: str) -> Tensor:
    raise AssertionError(f"{name} has no values")


def _one(
    sources: dict[str, Callable[[], Members]],
    spec: ModelSpec,
    calibration: Calibration,
    fmt: Format,
    rank: int | Mapping[str, int],
    preset: Preset,
    partial: Path,
    device: torch.device,
    indexed: tuple[int, LinearGroup],
) -> tuple[Node, SVDQLinear]:
    """One group: taken over from an interrupted run, or quantized and saved."""
    index, group = indexed
    source = sources.pop(group.node)
    shard = _shard(partial, index)
    done = _resume(shard, group)
    if done is not None:
        return done
    weights, biases = source()
    own_rank = group.rank(rank) if isinstance(rank, int) else rank[group.node]
    quantized = quantize_group(
        [w.to(device) for w in weights],
        biases,
        calibration.x[group.node],
        W4A16 if group.weight_only else fmt,
        own_rank,
        act_dtype=spec.torch_dtype,
        name=group.node,
        activation=group.activation,
        x_absmax=calibration.amax[group.node],
        act_shift=group.act_shift,
        preset=preset,
    )
    node = Node.from_quantized(quantized, group.members, tuple(len(w) for w in weights))
    artifact.save(shard, {f"{group.node}.{k}": t.cpu() for k, t in quantized.tensors.items()}, {}, [node])
    return node, layer_of(node, artifact.load(shard).tensors)  # mapped: a finished layer takes no memory


def _shard(partial: Path, index: int) -> Path:
    return partial / f"{index:04d}.safetensors"


def _of_another_rank(partial: Path, index: int, group: LinearGroup) -> tuple[Node, SVDQLinear]:
    done = _resume(_shard(partial, index), group)
    if done is None:
        raise ArtifactError(
            str(_shard(partial, index)),
            "no finished layer",
            f"{group.node}, from another rank",
            "All ranks must see the same folder; run the same command to go on.",
        )
    return done


def _resume(shard: Path, group: LinearGroup) -> tuple[Node, SVDQLinear] | None:
    """The finished group; None where the file is not there, damaged, or of something else."""
    if not shard.exists():
        return None
    try:
        loaded = artifact.load(shard)
    except ArtifactError:
        return None
    if [node.name for node in loaded.nodes] != [group.node]:
        return None
    return loaded.nodes[0], layer_of(loaded.nodes[0], loaded.tensors)


def layer_of(node: Node, tensors: Mapping[str, Tensor]) -> SVDQLinear:
    """The module of a node, from the tensors of its artifact."""
    own = {name: tensors[f"{node.name}.{name}"] for name in TENSORS}
    return SVDQLinear(own, FORMATS[node.format], Activation(node.activation), node.act_unsigned, node.act_shift)


def restore_model(loaded: artifact.Artifact, spec: ModelSpec) -> nn.Module:
    """The quantized module of an artifact: structure on meta, tensors memory-mapped."""
    module = spec.build(device="meta")
    groups = spec.groups(module, tuple(loaded.meta.get("skip", ())))
    # Imported linears that share no smoothing are nodes of their own, though the recipe would fuse them.
    by_node = {m: LinearGroup(m, (m,)) for g in groups if len(g.members) > 1 for m in g.members}
    by_node |= {group.node: group for group in groups}
    sizes = {name: tuple(m.weight.shape) for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    installed: set[str] = set()
    for node in loaded.nodes:
        group = by_node.get(node.name)
        if group is None or not _is_of(node, group, sizes) or installed & {node.name, *_whole(group)}:
            known = f"the nodes of model {spec.name}"
            raise ArtifactError("svdq.safetensors", f"node {node.name}", known, artifact.REMAKE)
        installed |= {node.name, *_whole(group)}
        spec.install(module, group, layer_of(node, loaded.tensors))
    for name, want in module.state_dict().items():
        got = loaded.tensors.get(name)
        if got is not None and (got.shape != want.shape or got.dtype != want.dtype):
            raise ArtifactError(
                "svdq.safetensors",
                f"{name} is {got.dtype} {list(got.shape)}",
                f"{want.dtype} {list(want.shape)}",
                artifact.REMAKE,
            )
    result = module.load_state_dict(loaded.tensors, strict=False, assign=True)
    if result.missing_keys or result.unexpected_keys:
        name = (result.missing_keys or result.unexpected_keys)[0]
        raise ArtifactError(
            "svdq.safetensors", f"{name} missing or unknown", f"the tensors of {spec.name}", artifact.REMAKE
        )
    return module.eval()


def _is_of(node: Node, group: LinearGroup, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Is the node the group's, in its sizes and in what it computes."""
    start, stop = group.columns or (0, sizes[group.members[0]][1])
    return (
        node.members == group.members
        and node.activation == group.activation.value
        and node.k == stop - start
        and node.member_rows == tuple(sizes[m][0] for m in group.members)
    )


def _whole(group: LinearGroup) -> tuple[str, ...]:
    """Members that no other node may have; those split by columns belong to several."""
    return group.members if group.columns is None else ()
