"""Resolving a BuildConfig into models, folders and identities of input files: all decisions, no work.

<out>/<model>-shared/                     files that several engines use
calib.safetensors  calibration-inputs.safetensors  model-fp16.onnx(.data)  reference.npz
<format>-r<rank>/, <format>-rauto/, or <format>-imported/
                   svdq.safetensors  model.onnx(.data)  quantized.npz  accuracy.png
<format>-...-lora/  the same with --lora or --lora-slots, made from the one above
<format>-...-attention/  the same for engines whose attention is the plugin's
<out>/<model>-sm_89/                      one engine: links to the above, plan, plugin, manifest
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.device import resolve_device
from svdq_trt.base.errors import UsageError
from svdq_trt.base.files import sha256
from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.given import check_given
from svdq_trt.build.pipeline_work import PipelineWork, plan_pipeline
from svdq_trt.build.sizes import Sizes
from svdq_trt.build.stage import File
from svdq_trt.build.stages.lora import requests
from svdq_trt.build.stages.weights import LoraAt, Weights
from svdq_trt.checkpoint import Identity, identify_weights
from svdq_trt.checkpoint.folder import open_folder
from svdq_trt.contract.archs import KERNELS, resolve_attention, resolve_format
from svdq_trt.contract.formats import FORMATS, Format
from svdq_trt.interop import Description, describe, digest
from svdq_trt.lora.alphas import config_beside
from svdq_trt.lora.apply import check_loras
from svdq_trt.models import ModelSpec, get_model, is_description
from svdq_trt.models.spec import SYMBOLS

_CHECK_BYTES_PER_PARAMETER = 6.3  # measured: ONNX Runtime widens 16-bit weights to f32 beside the file's own


@dataclass(frozen=True)
class Engine:
    """One engine to build."""

    arch: int
    format: Format
    attention: tuple[int, ...]  # head sizes of the attentions that are the plugin's
    folder: Path
    shared: Path  # <out>/<model>-shared/<format>-(r<rank>|imported)[-lora][-attention]: where graph and check are


@dataclass(frozen=True)
class Work:
    """A build with every option resolved."""

    config: BuildConfig
    spec: ModelSpec
    sizes: Sizes
    shared: Path
    engines: tuple[Engine, ...]
    weights: Weights  # with an empty digest where nothing reads them
    identity: Identity  # of the weights: their files
    device: str  # "cpu" or "cuda", of calibration and quantizer
    loras: tuple[LoraAt, ...] = ()
    loras_need_weights: bool = False  # some are made of the model's own weights, as a DoRA is
    quantized: File | None = None  # --quantized
    import_needs_weights: bool = False  # which has quantized layers alone
    sensitivity: File | None = None  # --sensitivity
    calibration: File | None = None  # --calibration
    sampling: str = ""  # digest of pipeline, prompts and settings of --calibration-prompts
    pipeline: PipelineWork | None = None  # --pipeline

    @property
    def logs(self) -> Path:
        """Folder of the stages' logs."""
        return self.shared / "logs"

    def formats(self) -> list[Format]:
        """Each format once."""
        return list(dict.fromkeys(engine.format for engine in self.engines))

    def graphs(self) -> dict[Path, Engine]:
        """The shared folder of each graph once, with an engine that has it."""
        return {engine.shared: engine for engine in self.engines}

    def quantized_folder(self, fmt: str) -> Path:
        """The shared folder of a format's quantized model, without any LoRA."""
        return self.shared / f"{fmt}-{_ending(self.config)}"

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest value of every size, on which a graph depends."""
        return self.sizes.ranges()

    def inputs(self) -> tuple[TensorProfile, ...]:
        """The profile of every input."""
        return self.sizes.tensors(self.spec.inputs, self.spec.torch_dtype)

    def outputs(self) -> tuple[TensorProfile, ...]:
        """Shape ranges of every output."""
        return self.sizes.tensors(self.spec.outputs, self.spec.torch_dtype)


def require_memory_for_check(spec: ModelSpec, memory_bytes: int) -> None:
    """Raise UsageError where the 16-bit model can't be run here, before hours are spent on the way to it."""
    needed = _CHECK_BYTES_PER_PARAMETER * spec.parameters
    gb = [f"{size / 1e9:.0f} GB" for size in (needed, memory_bytes)]
    if needed > memory_bytes:
        raise UsageError(
            "--check",
            f"{spec.name} in 16 bit takes some {gb[0]} to run, this machine has {gb[1]}",
            "that much memory, or --no-check",
            f"Its small twin is compared instead by: svdq-trt build --model {spec.twin} --random-weights 0."
            if spec.twin
            else "",
        )


def plan_work(config: BuildConfig) -> Work:
    """Resolve a config: model, profile, formats, folders, identity of the weights.

    Raises:
        SvdqError: an unknown model, no such device, a profile that the model cannot take, missing weights,
            a check that doesn't fit this machine's memory.
    """
    spec, config = _model(config)
    device = "cpu" if config.quantized is not None else resolve_device(config.device)
    if config.check:
        require_memory_for_check(spec, psutil.virtual_memory().total)
    profile = {symbol: _range(getattr(config, symbol), getattr(spec.profile, symbol)) for symbol in SYMBOLS}
    for index in range(3):
        spec.check_sizes({symbol: values[index] for symbol, values in profile.items()})
    shared = config.out / f"{spec.name}-shared"
    source = None if config.quantized is None else describe(config.quantized, spec)
    given = None if source is None else _quantized_format(config, source)
    ending = _ending(config) + ("-lora" if config.loras or config.lora_slots else "")
    engines = []
    for arch in config.archs:
        fmt = resolve_format(config.format, arch) if given is None else given
        attention = resolve_attention(config.attention, arch)
        graph = f"{fmt.name}-{ending}" + ("-attention" if attention else "")
        engines.append(Engine(arch, fmt, attention, config.out / f"{spec.name}-sm_{arch}", shared / graph))
    # All that is given is opened and checked here, before the hours that quantizing may take.
    check_given(config, spec)
    pipeline = plan_pipeline(config, spec, Sizes(profile))
    loras = tuple(_lora(lora.path.resolve(), lora.strength) for lora in config.loras)
    loras_need_weights = bool(loras) and check_loras(requests(loras), spec, config.allow_partial)
    import_needs_weights = source is not None and not source.complete
    if import_needs_weights and config.checkpoint is None and config.random_weights is None:
        got, want = f"{config.quantized}, which has quantized layers alone", "16-bit weights for the others"
        raise UsageError("--quantized", got, want, "Give them with --checkpoint.")
    needs_weights = config.quantized is None or config.check or loras_need_weights or import_needs_weights
    identity = identify_weights(spec, config.checkpoint, config.random_weights) if needs_weights else Identity("")
    weights = Weights(
        spec.source,
        identity.digest,
        checkpoint=config.checkpoint,
        random_weights=config.random_weights,
    )
    quantized = None if config.quantized is None else File(digest(config.quantized, spec), path=config.quantized)
    scan = config.rank_auto.sensitivity if config.rank_auto else None
    return Work(
        config,
        spec,
        Sizes(profile),
        shared,
        tuple(engines),
        weights,
        identity,
        device,
        loras,
        loras_need_weights,
        quantized,
        import_needs_weights=import_needs_weights,
        sensitivity=None if scan is None else _file(scan),
        calibration=None if config.calibration is None else _file(config.calibration),
        sampling="" if config.sampling is None else config.sampling.digest(),
        pipeline=pipeline,
    )


def _model(config: BuildConfig) -> tuple[ModelSpec, BuildConfig]:
    """The model that a config names, or whose folder it gives: that is then the checkpoint as well."""
    if is_description(config.model) or not Path(config.model).is_dir():
        return get_model(config.model), config
    given = {symbol: getattr(config, symbol) for symbol in SYMBOLS}
    fixed = {symbol: size.min for symbol, size in given.items() if size is not None and size.min == size.max}
    spec = open_folder(Path(config.model), fixed)
    none = config.checkpoint is None and config.random_weights is None and config.quantized is None
    return spec, replace(config, checkpoint=config.model) if none else config


def _file(path: Path) -> File:
    return File(sha256(path), path=path)


def _lora(path: Path, strength: float) -> LoraAt:
    config = config_beside(path)
    return LoraAt(_file(path), strength, None if config is None else _file(config))


def _ending(config: BuildConfig) -> str:
    """Ending of the folder name of a quantized model without LoRA."""
    if config.quantized is not None:
        return "imported"
    return f"r{config.rank}" if config.rank_auto is None else "rauto"


def _quantized_format(config: BuildConfig, source: Description) -> Format:
    """The number format of --quantized. Raises UsageError where an arch has no kernels for it."""
    found = FORMATS[source.format]
    if config.format not in ("auto", found.name):
        raise UsageError("--format", config.format, f"auto or {found.name}, which {config.quantized} has")
    for arch in config.archs:
        if found.name not in KERNELS[arch]:
            archs = ", ".join(f"sm_{a}" for a, formats in KERNELS.items() if found.name in formats)
            raise UsageError("--arch", f"sm_{arch} for {config.quantized}, which is {found.name}", f"one of {archs}")
    return found


def _range(given: Range | None, default: tuple[int, int, int]) -> tuple[int, int, int]:
    return default if given is None else (given.min, given.opt, given.max)
