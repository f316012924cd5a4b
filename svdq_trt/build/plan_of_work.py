"""From a BuildConfig to folders, stages, keys and arguments: all decisions, no work.

<out>/<model>-shared/                     what several engines use
calib.safetensors  calibration-inputs.safetensors  model-fp16.onnx(.data)  reference.npz
<format>-r<rank>/, <format>-rauto/, or <format>-imported/
                   svdq.safetensors  model.onnx(.data)  quantized.npz  accuracy.png
<format>-...-lora/  the same with --lora or --lora-slots, made from the one above
<out>/<model>-sm_89/                      one engine: links to the above, plan, plugin, manifest
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from svdq_trt.base.device import resolve_device
from svdq_trt.base.errors import UsageError
from svdq_trt.base.files import sha256
from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.freshness import stage_key
from svdq_trt.contract.archs import KERNELS, resolve_format
from svdq_trt.contract.formats import FORMATS, Format
from svdq_trt.models import ModelSpec, TensorIO, get_model

CHECK_SEED = 20_241_107  # differs from every calibration seed
_CHECK_BYTES_PER_PARAMETER = 6.3  # measured: ONNX Runtime widens 16-bit weights to f32 beside the file's own

_GRAPH = ("svdq_export", "svdq_trt/nn", "svdq_trt/contract", "svdq_trt/models", "svdq_trt/build/stages/graph")
_GRAPH_LIBRARIES = ("torch", "diffusers", "onnx", "onnxscript", "onnx-ir")

#: our code and the libraries that each stage runs; a change in either makes the stage run again
_DEPENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sample": (("svdq_trt/calibrate", "svdq_trt/pipeline", "svdq_trt/models"), ("torch", "diffusers")),
    "calibrate": (("svdq_trt/calibrate", "svdq_trt/checkpoint", "svdq_trt/models"), ("torch", "diffusers")),
    "allocate": (
        (
            "svdq_trt/quantize",
            "svdq_trt/contract/numerics",
            "svdq_trt/contract",
            "svdq_trt/models",
            "svdq_trt/calibrate",
        ),
        ("torch",),
    ),
    "sensitivity": (
        ("svdq_trt/quantize", "svdq_trt/nn", "svdq_trt/models", "svdq_trt/calibrate"),
        ("torch", "diffusers"),
    ),
    "quantize": (
        ("svdq_trt/quantize", "svdq_trt/contract/numerics", "svdq_trt/contract", "svdq_trt/models"),
        ("torch",),
    ),
    "import": (
        (
            "svdq_trt/interop",
            "svdq_trt/checkpoint",
            "svdq_trt/contract/numerics",
            "svdq_trt/contract",
            "svdq_trt/models",
            "svdq_trt/artifact/svdq_file",
        ),
        ("torch",),
    ),
    "lora": (("svdq_trt/lora", "svdq_trt/contract", "svdq_trt/models"), ("torch", "diffusers")),
    "export": ((*_GRAPH, "svdq_trt/lora/slots"), _GRAPH_LIBRARIES),
    "reference_export": ((*_GRAPH, "svdq_trt/checkpoint", "svdq_trt/lora"), _GRAPH_LIBRARIES),
    "run_onnx": (("svdq_export", "svdq_trt/check", "svdq_trt/models"), ("onnxruntime", "polygraphy")),
    "compare": (("svdq_trt/check",), ("polygraphy", "matplotlib")),
    "plan": (("svdq_trt/engine",), ()),  # the backend's version is a parameter
}


def key(stage: str, **params: Any) -> str:
    """Freshness key of a stage, over its code, its libraries and its parameters."""
    sources, libraries = _DEPENDS[stage]
    return stage_key(stage, sources, params | {name: version(name) for name in libraries})


@dataclass(frozen=True)
class Engine:
    """One plan to build."""

    arch: int
    format: Format
    folder: Path
    shared: Path  # <out>/<model>-shared/<format>-(r<rank>|imported)[-lora]: where graph and check are


@dataclass(frozen=True)
class Work:
    """Everything resolved."""

    config: BuildConfig
    spec: ModelSpec
    profile: dict[str, tuple[int, int, int]]
    shared: Path
    engines: tuple[Engine, ...]
    weights_id: str
    device: str  # "cpu" or "cuda", of calibration and quantizer
    loras_id: tuple[tuple[str, float], ...] = ()  # digest and strength of each
    quantized_id: str = ""  # digest of --quantized
    scan_id: str = ""  # digest of --sensitivity
    logs: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "logs", self.shared / "logs")

    def formats(self) -> dict[Format, Path]:
        """Each format once, with the shared folder of its graph."""
        return {engine.format: engine.shared for engine in self.engines}

    def quantized_folder(self, fmt: str) -> Path:
        """The shared folder of a format's quantized model, without any LoRA."""
        return self.shared / f"{fmt}-{_ending(self.config)}"

    def lora_args(self) -> dict[str, Any]:
        """The LoRA files as a stage's arguments."""
        loras = [[str(lora.path.resolve()), lora.strength] for lora in self.config.loras]
        return {"loras": loras, "allow_partial": self.config.allow_partial}

    def lora_key(self) -> dict[str, Any]:
        """The LoRA files as parameters of a key; nothing without any."""
        return {"loras": self.loras_id, "allow_partial": self.config.allow_partial} if self.loras_id else {}

    def profiles(self) -> list[dict[str, Any]]:
        """TensorRT profile of every input, as TensorProfile fields."""
        return [self._tensor(io) for io in self.spec.inputs]

    def outputs(self) -> list[dict[str, Any]]:
        """Shape ranges of every output."""
        return [self._tensor(io) for io in self.spec.outputs]

    def _tensor(self, io: TensorIO) -> dict[str, Any]:
        low, opt, high = (io.shape({symbol: values[i] for symbol, values in self.profile.items()}) for i in range(3))
        dtype = str(io.torch_dtype(self.spec.torch_dtype)).removeprefix("torch.")
        return {"name": io.name, "dtype": dtype, "min": low, "opt": opt, "max": high}

    def check_sizes(self) -> dict[str, int]:
        """The smallest profile shape."""
        return {symbol: low for symbol, (low, _, _) in self.profile.items()}


def require_memory_for_check(spec: ModelSpec, memory_bytes: int) -> None:
    """Raise UsageError where the 16-bit model can't be run here, before hours are spent on the way to it."""
    needed = _CHECK_BYTES_PER_PARAMETER * spec.parameters
    gb = [f"{size / 1e9:.0f} GB" for size in (needed, memory_bytes)]
    if needed > memory_bytes:
        raise UsageError(
            "--check",
            f"{spec.name} in 16 bit takes some {gb[0]} to run, this machine has {gb[1]}",
            "that much memory, or --no-check",
            f"Its small twin is compared instead by: svdq-trt build --model {spec.twin} --random-weights 0.",
        )


def plan_work(config: BuildConfig) -> Work:
    """Resolve a config: model, profile, formats, folders, identity of the weights.

    Raises:
        SvdqError: an unknown model, no such device, a profile that the model cannot take, weights that cannot be had,
            a check that doesn't fit this machine's memory.
    """
    from svdq_trt.checkpoint import weights_digest
    from svdq_trt.interop import digest

    spec = get_model(config.model)
    device = "cpu" if config.quantized is not None else resolve_device(config.device)
    if config.check:
        require_memory_for_check(spec, psutil.virtual_memory().total)
    profile = {
        symbol: _range(getattr(config, symbol, None), getattr(spec.profile, symbol))
        for symbol in ("batch", "height", "width", "tokens")
    }
    for index in range(3):
        spec.check_sizes({symbol: values[index] for symbol, values in profile.items()})
    shared = config.out / f"{spec.name}-shared"
    given = None if config.quantized is None else _quantized_format(config, spec)
    ending = _ending(config) + ("-lora" if config.loras or config.lora_slots else "")
    engines = tuple(
        Engine(arch, fmt, config.out / f"{spec.name}-sm_{arch}", shared / f"{fmt.name}-{ending}")
        for arch in config.archs
        for fmt in [resolve_format(config.format, arch) if given is None else given]
    )
    needs_weights = config.quantized is None or config.check
    weights_id = weights_digest(spec, config.checkpoint, config.random_weights) if needs_weights else ""
    loras_id = tuple((sha256(lora.path), lora.strength) for lora in config.loras)
    quantized_id = "" if config.quantized is None else digest(config.quantized, spec)
    scan = config.rank_auto.sensitivity if config.rank_auto else None
    scan_id = "" if scan is None else sha256(scan)
    return Work(config, spec, profile, shared, engines, weights_id, device, loras_id, quantized_id, scan_id)


def _ending(config: BuildConfig) -> str:
    """Of the folder that holds the quantized model without LoRA."""
    if config.quantized is not None:
        return "imported"
    return f"r{config.rank}" if config.rank_auto is None else "rauto"


def _quantized_format(config: BuildConfig, spec: ModelSpec) -> Format:
    """The number format of --quantized, once every arch has kernels for it."""
    from svdq_trt.interop import describe

    assert config.quantized is not None
    found = FORMATS[describe(config.quantized, spec).format]
    if config.format not in ("auto", found.name):
        raise UsageError("--format", config.format, f"auto or {found.name}, which {config.quantized} has")
    for arch in config.archs:
        if found.name not in KERNELS[arch]:
            archs = ", ".join(f"sm_{a}" for a, formats in KERNELS.items() if found.name in formats)
            raise UsageError("--arch", f"sm_{arch} for {config.quantized}, which is {found.name}", f"one of {archs}")
    return found


def _range(given: Range | None, default: tuple[int, int, int]) -> tuple[int, int, int]:
    return default if given is None else (given.min, given.opt, given.max)
