"""Quantize a model group by group, in place.

Every finished group is a file of its own in ``<artifact>.partial/``, so a killed run resumes where it stopped, and
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

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.device import ranks_on
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import own_folder
from svdq_trt.base.progress import Progress
from svdq_trt.base.ranks import Alone
from svdq_trt.contract.formats import W4A16, Format
from svdq_trt.contract.numerics import CPU
from svdq_trt.models import LinearGroup, member_tensors
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.nn.restore import layer_of
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import Preset
from svdq_trt.quantize.workers import Members, layer_pool, layer_weights

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
    layers_done: Callable[[], None] = lambda: None,
) -> list[Node]:
    """Quantize every group of `module` and write the artifact `out`.

    Args:
        module: the 16-bit model; its quantized linears are replaced. On meta, it is never whole in memory: every
            parameter comes from `read` when its layer is quantized or written.
        groups: the nodes to make, as spec.recipe gave them for `skip`.
        calibration: tokens and absmax of every group's input.
        fmt: format of groups with quantized activations; weight-only groups take w4a16.
        rank: R that the user asked for, or R of each node by its name (allocate.py).
        key: identifies the inputs; groups finished under the same key are reused.
        read: name -> parameter, for a module on meta; called from several threads.
        notes: more to say in the artifact's metadata.
        device: where the layers are worked on, each moved there when its turn comes. Recorded in the artifact.
        crew: the ranks that share the groups; this process alone when None. Ranks other than 0 quantize their share
            and return [].
        layers_done: called on rank 0 once every rank's layers are finished; what follows is writing the artifact.

    Raises:
        SvdqError: from a layer that cannot be quantized, named.
    """
    crew = crew or Alone()
    partial = own_folder(out.parent, f"{out.name}.partial", key[:16])
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
    layers_done()
    nodes: list[Node] = []
    for i, group in enumerate(groups):
        node, layer = finished.pop(i) if i in finished else _of_another_rank(partial, i, group)
        spec.install(module, group, layer)
        nodes.append(node)
    progress(total, total, f"writing {out.name}")
    meta: dict[str, Any] = {
        "model": spec.weights,
        "format": fmt.name,
        "rank": top_rank(rank),
        "preset": preset.name,
        "skip": list(skip),
        "device": device.type,
        **(notes or {}),
    }
    first, source = _first_names(module), read or _nothing_on_meta
    svdq_file.save_streamed(out, module.state_dict(), lambda name: source(first[name]), meta, nodes)
    shutil.rmtree(partial.parent)
    return nodes


def top_rank(rank: int | Mapping[str, int]) -> int:
    """The one number that says a model's rank: R asked for, or the largest of the nodes' own."""
    return rank if isinstance(rank, int) else max(rank.values(), default=0)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a tensor -> its first, by which it is read: what two modules share, as T5's words, has two."""
    seen: dict[int, str] = {}
    return {name: seen.setdefault(id(t), name) for name, t in module.state_dict(keep_vars=True).items()}


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
    """One group: reused from an interrupted run, or quantized and saved."""
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
    node = quantized.node(group.members, tuple(len(w) for w in weights))
    svdq_file.save(shard, {k: t.cpu() for k, t in quantized.weights.named(group.node).items()}, {}, [node])
    return node, layer_of(node, svdq_file.load(shard).tensors)  # mapped: a finished layer takes no memory


def _shard(partial: Path, index: int) -> Path:
    return partial / f"{index:04d}.safetensors"


def _of_another_rank(partial: Path, index: int, group: LinearGroup) -> tuple[Node, SVDQLinear]:
    done = _resume(_shard(partial, index), group)
    if done is None:
        raise ArtifactError(
            str(_shard(partial, index)),
            "no finished layer",
            f"{group.node}, from another rank",
            "All ranks must see the same folder; run the same command to continue.",
        )
    return done


def _resume(shard: Path, group: LinearGroup) -> tuple[Node, SVDQLinear] | None:
    """The finished group; None where the file is not there, damaged, or of something else."""
    if not shard.exists():
        return None
    try:
        loaded = svdq_file.load(shard)
    except ArtifactError:
        return None
    if [node.name for node in loaded.nodes] != [group.node]:
        return None
    return loaded.nodes[0], layer_of(loaded.nodes[0], loaded.tensors)
