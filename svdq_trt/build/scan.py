"""``svdq-trt sensitivity``: quantize a model, then run it with each node quantized alone.

<file>.partial/  what a killed scan resumes from: calib.safetensors, svdq.safetensors (every node quantized),
                 effects.jsonl (a line per node that was run)
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.sensitivity import Effect, Sensitivity
from svdq_trt.base.device import resolve_device
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.files import own_folder, sha256
from svdq_trt.base.journal import Journal
from svdq_trt.base.progress import Progress
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.folder import only_writer
from svdq_trt.build.given import check_calibration, check_skip, check_weights
from svdq_trt.build.model_source import OpenModel
from svdq_trt.build.process import StageRunner
from svdq_trt.build.stage import File, key_of
from svdq_trt.build.stages.calibrate import FILE as CALIBRATION
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.quantize import FILE as QUANTIZED
from svdq_trt.build.stages.quantize import Quantize
from svdq_trt.build.stages.run_onnx import SEED
from svdq_trt.build.stages.weights import Weights
from svdq_trt.build.ui import Screen
from svdq_trt.calibrate.inputs import InputFile, synthetic
from svdq_trt.checkpoint import identify_weights, load
from svdq_trt.contract.formats import FORMATS
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.nn.restore import layer_of
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.sensitivity import Probe, scan


@dataclass(frozen=True)
class ScanConfig:
    """The options of a scan.

    Attributes:
        model, checkpoint, random_weights, format, rank, preset, calibration, skip: as in BuildConfig.
        samples: number of inputs to run on: the first ones of `calibration`, or synthetic ones that calibration does
            not use.
        pixels: side of synthetic images; None: as calibration.
        device: as in BuildConfig; on a GPU, the model is there in float32.
    """

    model: str
    checkpoint: str | None
    random_weights: int | None
    format: str
    rank: int
    preset: str
    calibration: Path | None
    skip: tuple[str, ...]
    samples: int
    pixels: int | None
    device: str

    def check(self) -> None:
        """Check the options before any work. Raises UsageError."""
        if self.format not in FORMATS:
            raise UsageError("--format", f"'{self.format}'", f"one of {', '.join(FORMATS)}")
        if self.samples < 1:
            raise UsageError("--samples", f"{self.samples}", "1 or more")
        if self.pixels is not None and self.calibration is not None:
            raise UsageError("--pixels", "given with --calibration", "one of them", "The file's tensors have sizes.")


def run_scan(config: ScanConfig, out: Path, screen: Screen) -> Sensitivity:
    """Scan, and write `out`, resuming an unfinished scan with the same options.

    Raises:
        SvdqError: bad arguments, missing weights, a layer that cannot be quantized, or another process at
            work on the same scan.
    """
    config.check()
    config = replace(config, device=resolve_device(config.device))
    partial = out.with_name(f"{out.name}.partial")
    stage = _stage(config, partial, screen.say)
    own_folder(partial.parent, partial.name)
    with only_writer(partial):
        screen.say(get_preset(config.preset).search_line(config.device))
        loaded = _quantized(stage, Execution(screen, StageRunner(), partial))
        with screen.stage(f"sensitivity  {config.model} {config.format}") as progress:
            model = stage.calibrate.open(progress)
            found = _scanned(config, stage.key, loaded, model, partial / "effects.jsonl", progress)
        found.save(out)
        shutil.rmtree(partial)
    return found


def _stage(config: ScanConfig, partial: Path, say: Callable[[str], None]) -> Quantize:
    """The quantizer's stage for a scan, writing to `partial`. Raises SvdqError: see run_scan."""
    BuildConfig(  # for its checks
        config.model,
        (),
        Path(),
        config.checkpoint,
        config.random_weights,
        rank=config.rank,
        preset=config.preset,
        calibration=config.calibration,
        check=False,
    )
    spec = get_model(config.model)
    check_weights(spec, config.checkpoint, config.random_weights)
    check_skip(spec, config.skip)
    if config.calibration is not None:
        check_calibration(spec, config.calibration)
    identity = identify_weights(spec, config.checkpoint, config.random_weights)
    for note in identity.notes:
        say(note)
    weights = Weights(
        config.model,
        identity.digest,
        checkpoint=config.checkpoint,
        random_weights=config.random_weights,
    )
    inputs = None if config.calibration is None else File(sha256(config.calibration), path=config.calibration)
    calibrate = Calibrate(weights, inputs, config.skip, config.device, out=partial / CALIBRATION)
    return Quantize(calibrate, config.format, config.rank, None, config.preset, out=partial / QUANTIZED)


def _quantized(stage: Quantize, execution: Execution) -> svdq_file.Artifact:
    """All nodes quantized, read from the quantizer's stage, which runs unless it is fresh."""
    execution.run(stage, Costs())
    with suppress(ArtifactError):  # reused, and damaged after all: quantized again
        return svdq_file.load(stage.out)
    execution.again(stage, Costs())
    return svdq_file.load(stage.out)


def _scanned(
    config: ScanConfig,
    quantize_key: str,
    loaded: svdq_file.Artifact,
    model: OpenModel,
    effects_file: Path,
    progress: Progress,
) -> Sensitivity:
    """Run the scan itself; `effects_file` has the nodes that are done."""
    fields = {"quantize": quantize_key, "samples": config.samples, "pixels": config.pixels}
    effects_key = key_of("sensitivity", __name__, fields)
    journal = Journal(effects_file, effects_key)
    probe = _probe(config, model)
    layers = {node.name: layer_of(node, loaded.tensors).to(config.device) for node in loaded.nodes}
    effects: list[Effect] = []
    for effect in scan(probe, layers, {node.name: node.sqnr_db for node in loaded.nodes}, journal.values):
        if effect.node not in journal.values:
            journal.add(effect.node, effect.output_db)
        effects.append(effect)
        progress(len(effects), len(layers), f"{effect.node}  {effect.output_db:.1f} dB")
    return Sensitivity(
        model.spec.weights,
        config.format,
        config.rank,
        config.preset,
        _describe(config),
        tuple(effects),
        probe.output_db(layers),
    )


def _probe(config: ScanConfig, model: OpenModel) -> Probe:
    spec, module, read = model.spec, model.module, model.read
    if config.device != "cpu":
        if read is not None:
            module, read = load(spec, config.checkpoint, config.random_weights), None
        nn.Module.to(module, config.device, torch.float32)
    return Probe(module, spec, model.recipe.groups, _inputs(config, spec), read)


def _inputs(config: ScanConfig, spec: ModelSpec) -> list[tuple[Tensor, ...]]:
    pixels = config.pixels or spec.calibration_pixels
    source = (
        synthetic(spec, config.samples, pixels, pixels, SEED)
        if config.calibration is None
        else itertools.islice(InputFile(spec, config.calibration), config.samples)
    )
    return [tuple(t.to(config.device) for t in values) for values in source]


def _describe(config: ScanConfig) -> str:
    if config.calibration is not None:
        return f"the first {config.samples} of {config.calibration.name}"
    return f"{config.samples} synthetic" + (f" of {config.pixels} pixels" if config.pixels else "")


def worst(effects: Sequence[Effect], count: int) -> list[Effect]:
    """The `count` nodes that change the output most, the worst first."""
    return sorted(effects, key=lambda e: e.output_db)[:count]
