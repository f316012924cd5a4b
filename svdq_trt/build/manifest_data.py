"""The contents of an engine's manifest, from the stages' results and the artifact."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svdq_trt import __version__
from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.graph_entries import OnnxEntry
from svdq_trt.artifact.manifest import (
    AccuracyEntry,
    LeftOut,
    Manifest,
    QuantizedEntry,
    SlotsEntry,
    Tensor,
)
from svdq_trt.artifact.origin import InputsEntry, OriginEntry, WeightsEntry
from svdq_trt.base.errors import IncompleteError
from svdq_trt.build.code import code_digest
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.execute import Costs
from svdq_trt.build.made import Made, PartMade
from svdq_trt.build.pipeline_work import PartWork
from svdq_trt.build.stages import compare, export, quantize, run_onnx
from svdq_trt.build.stages.plan import Planned, plugin_entry, with_plan
from svdq_trt.build.work import Engine, Work
from svdq_trt.checkpoint import Identity
from svdq_trt.engine.plugin_lib import PluginLibrary

_NOT_QUANTIZED = "beside the denoiser: runs once for a picture, not quantized"
_PACKAGES = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "polygraphy", "safetensors", "numpy")


def manifest_of(
    work: Work,
    engine: Engine,
    made: Made,
    costs: Costs,
    library: PluginLibrary,
    planned: Planned | None,
    incomplete: IncompleteError | None,
    digests: Mapping[Path, str],
) -> Manifest:
    """The manifest of an engine folder; without a plan, `incomplete` says why. `digests`: of the folder's files."""
    quantized, onnx = made.quantized, engine.folder / export.FILE
    size = made.quantized.quantized_weight_bytes if made.loras is None else made.loras.quantized_weight_bytes
    data = Manifest(
        model=work.spec.name,
        description=work.spec.description,
        arch=f"sm_{engine.arch}",
        format=engine.format.name,
        rank=quantized.rank,
        backend=None,
        plugin=plugin_entry(library),
        plan=None,
        incomplete="" if incomplete is None else str(incomplete),
        onnx=_onnx(onnx, digests, export.piece_files(work.config.step_cache)),
        artifact=_file(engine.folder / quantize.FILE, digests),
        inputs=tuple(Tensor.of(profile) for profile in work.inputs()),
        outputs=tuple(Tensor.of(profile) for profile in work.outputs()),
        allocation=None if made.allocated is None else made.allocated.allocation,
        quantized=_quantized(engine.folder / quantize.FILE),
        loras=() if made.loras is None else made.loras.loras,
        lora_slots=_slots(engine.folder / export.SLOTS_FILE, made.exported.slots, digests),
        attention=made.exported.attention,
        kept_16bit=quantized.kept_16bit,
        fp16_weight_bytes=quantized.fp16_weight_bytes,
        quantized_weight_bytes=size,
        accuracy=_accuracy(made, digests.get(engine.folder / compare.FILE, "")),
        device_memory_bytes={"weights": None, "activations": None},
        timings_s=costs.seconds,
        peak_rss_bytes=costs.peak_rss,
        versions=_versions(),
        config=work.config.to_json(),
        origin=_origin(work, made.collected),
    )
    return data if planned is None else with_plan(data, planned, library)


def part_manifest(
    config: BuildConfig,
    one: PartWork,
    made: PartMade,
    folder: Path,
    arch: int,
    costs: Costs,
    planned: Planned | None,
    incomplete: IncompleteError | None,
    digests: Mapping[Path, str],
) -> Manifest:
    """The manifest of the engine folder of a pipeline's part, in 16 bit; arguments as manifest_of's."""
    part, onnx = one.part, folder / export.FILE
    data = Manifest(
        model=part.class_name,
        arch=f"sm_{arch}",
        format=part.act_dtype,
        rank=0,
        backend=None,
        plugin=None,
        plan=None,
        incomplete="" if incomplete is None else str(incomplete),
        onnx=_onnx(onnx, digests),
        inputs=tuple(Tensor.of(profile) for profile in one.inputs()),
        outputs=tuple(Tensor.of(profile) for profile in one.outputs()),
        quantized=(),
        kept_16bit=tuple(LeftOut(name, _NOT_QUANTIZED) for name in made.exported.layers),
        fp16_weight_bytes=made.exported.data_bytes,
        quantized_weight_bytes=made.exported.data_bytes,
        accuracy=None,
        device_memory_bytes={"weights": None, "activations": None},
        timings_s=costs.seconds,
        peak_rss_bytes=costs.peak_rss,
        versions=_versions(),
        config=config.to_json(),
        origin=_origin_of(_weights(config, str(config.pipeline), one.identity)),
    )
    return data if planned is None else with_plan(data, planned, None)


def _onnx(path: Path, digests: Mapping[Path, str], pieces: Sequence[str] = ()) -> OnnxEntry:
    data = _file(path.with_name(f"{path.name}.data"), digests)
    cut = tuple(_file(path.with_name(name), digests) for name in pieces)
    return OnnxEntry(path.name, path.stat().st_size + data.bytes, digests[path], data, cut)


def _weights(config: BuildConfig, source: str, identity: Identity) -> WeightsEntry:
    seed = None if config.random_weights is None else f"random weights, seed {config.random_weights}"
    return WeightsEntry(seed or source, identity.digest, identity.files, identity.commit)


def _origin_of(weights: WeightsEntry | None, **inputs: Any) -> OriginEntry:
    return OriginEntry(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=platform.platform(),
        code=code_digest("svdq_trt.build.run"),
        weights=weights,
        **inputs,
    )


def _file(path: Path, digests: Mapping[Path, str]) -> FileEntry:
    return FileEntry(path.name, path.stat().st_size, digests[path])


def _origin(work: Work, collected: str) -> OriginEntry:
    config = work.config
    source, identity = config.checkpoint or work.spec.hub_id, work.identity
    return _origin_of(
        _weights(config, source, identity) if identity.digest else None,
        quantized="" if work.quantized is None else work.quantized.id,
        calibration=None if work.quantized is not None else _calibration(work, collected),
        sensitivity="" if work.sensitivity is None else work.sensitivity.id,
    )


def _calibration(work: Work, collected: str) -> InputsEntry:
    if work.config.sampling is not None:
        return InputsEntry(str(work.config.sampling.pipeline), work.sampling, collected)
    if work.calibration is None:
        return InputsEntry("synthetic", collected=collected)
    return InputsEntry(str(work.calibration.path), work.calibration.id, collected)


def _slots(path: Path, slots: export.Slots | None, digests: Mapping[Path, str]) -> SlotsEntry | None:
    if slots is None:
        return None
    return SlotsEntry(path.name, path.stat().st_size, digests[path], slots.rank, slots.inputs)


def _quantized(path: Path) -> tuple[QuantizedEntry, ...]:
    """The manifest's quantized entries, one per original linear; members of one node share its figures."""
    return tuple(
        QuantizedEntry(
            name=member,
            node=node.name,
            format=node.format,
            rank=node.rank,
            k=node.k,
            n=rows,
            activation=node.activation,
            act_unsigned=node.act_unsigned,
            act_shift=node.act_shift,
            alpha=node.alpha,
            beta=node.beta,
            sqnr_db=None if math.isnan(node.sqnr_db) else round(node.sqnr_db, 2),
        )
        for node in svdq_file.read_nodes(path)
        for member, rows in zip(node.members, node.member_rows, strict=True)
    )


def _accuracy(made: Made, plot_sha256: str) -> AccuracyEntry | None:
    if made.compared is None or made.checked_on is None:
        return None
    return AccuracyEntry(
        against="the FP16 ONNX in ONNX Runtime",
        sizes=made.checked_on.sizes,
        seed=run_onnx.SEED,
        inputs=made.checked_on.inputs,
        recorded=made.checked_on.recorded,
        mean_layer_sqnr_db=made.quantized.mean_sqnr_db,
        outputs=made.compared.outputs,
        plot=compare.FILE,
        plot_sha256=plot_sha256,
    )


def _versions() -> dict[str, str]:
    found = {"svdq-trt": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
