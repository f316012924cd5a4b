"""The options of one ``svdq-trt build``. Plain data; JSON in, JSON out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from svdq_trt.artifact.prompts import read_prompts
from svdq_trt.base.device import check_device
from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.base.extras import install
from svdq_trt.base.files import sha256
from svdq_trt.base.units import parse_bytes
from svdq_trt.contract.formats import R_MAX, R_MULTIPLE
from svdq_trt.contract.sizes import TILE_MULTIPLE, VAE_TILE
from svdq_trt.quantize.preset import DEFAULT_PRESET, get_preset

#: weights of a pipeline's folder that diffusers does not read with use_safetensors=True
_UNREAD = {".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pb", ".pt", ".pth", ".xml"}
RANK_WANT = f"a multiple of {R_MULTIPLE} from 0 to {R_MAX}"


@dataclass(frozen=True)
class Range:
    """min:opt:max of one dynamic size."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, option: str, text: str) -> Range:
        """Parse ``2`` (fixed) or ``1:2:4``. Raises UsageError."""
        want = "N or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX"
        if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
            raise UsageError(option, f"'{text}'", want)
        values = [int(part) for part in text.split(":")]
        low, opt, high = values if len(values) == 3 else values * 3
        if not 0 < low <= opt <= high:
            raise UsageError(option, f"'{text}'", want)
        return cls(low, opt, high)

    def __str__(self) -> str:
        return str(self.opt) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class LoraOption:
    """``--lora PATH[:STRENGTH]``."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraOption:
        """Parse the option: a colon and a number at the end are the strength; everything else is the path."""
        path, colon, number = text.rpartition(":")
        with contextlib.suppress(ValueError):
            if colon:
                return cls(Path(path), float(number))
        return cls(Path(text))

    def check(self) -> None:
        """Check the option before any work. Raises UsageError."""
        if self.path.suffix != ".safetensors" or not self.path.is_file():
            got = f"'{self.path}'" + ("" if self.path.is_file() else ": no such file")
            raise UsageError("--lora", got, "PATH.safetensors or PATH.safetensors:STRENGTH")
        if not math.isfinite(self.strength):
            raise UsageError("--lora", f"strength {self.strength}", "a finite number")


@dataclass(frozen=True)
class RankAuto:
    """``--rank auto``: what the ranks are chosen for (docs/allocation.md).

    Attributes:
        budget_bytes: most bytes of the nodes' tensors. target_sqnr: least predicted SQNR of the output, in dB. One of
            the two is None.
        sensitivity: file of ``svdq-trt sensitivity``.
    """

    budget_bytes: int | None = None
    target_sqnr: float | None = None
    sensitivity: Path | None = None

    @classmethod
    def parse(
        cls, rank: str, budget: str | None, target: float | None, sensitivity: Path | None
    ) -> tuple[int, RankAuto | None]:
        """Parse the options as given: (R, None), or (0, the meaning of auto). Raises UsageError."""
        options = {"--budget-bytes": budget, "--target-sqnr": target, "--sensitivity": sensitivity}
        if rank != "auto":
            try:
                number = int(rank)
            except ValueError:
                raise UsageError("--rank", f"'{rank}'", f"{RANK_WANT}, or auto") from None
            if given := [name for name, value in options.items() if value is not None]:
                raise UsageError(given[0], f"given with --rank {rank}", "--rank auto")
            return number, None
        return 0, cls(None if budget is None else parse_bytes("--budget-bytes", budget), target, sensitivity)

    def check(self) -> None:
        """Check the option before any work. Raises UsageError."""
        if (self.budget_bytes is None) == (self.target_sqnr is None):
            raise UsageError("--rank auto", "none or both of --budget-bytes and --target-sqnr", "one of them")
        if self.target_sqnr is not None and not 0 <= self.target_sqnr <= 300:
            raise UsageError("--target-sqnr", f"{self.target_sqnr}", "0 to 300 dB")
        if self.target_sqnr is not None and self.sensitivity is None:
            raise UsageError(
                "--target-sqnr",
                "given without --sensitivity",
                "a scan, to predict the output by",
                "Make one: svdq-trt sensitivity.",
            )
        if self.sensitivity is not None and not self.sensitivity.is_file():
            raise UsageError("--sensitivity", f"'{self.sensitivity}': no such file", "a file of svdq-trt sensitivity")


@dataclass(frozen=True)
class Sampling:
    """``--calibration-prompts``: calibration inputs are recorded in a pipeline, see calibrate/sample.py.

    Attributes:
        pipeline: diffusers folder. prompts: text file, a prompt per line.
        samples: denoising steps to keep. steps: denoising steps of a run. guidance: scale; None is the pipeline's
            default. seed: of the noise.
    """

    pipeline: Path
    prompts: Path
    samples: int = 16
    steps: int = 20
    guidance: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the options before any work.

        Raises:
            UsageError: an option makes no sense. UnsupportedError: the text encoders' library is not installed.
        """
        require_transformers("--calibration-prompts")
        if not (self.pipeline / "model_index.json").is_file():
            raise UsageError(
                "--calibration-pipeline",
                f"'{self.pipeline}': no model_index.json",
                "the folder of a whole diffusers pipeline",
            )
        if not self.prompts.is_file():
            raise UsageError("--calibration-prompts", f"'{self.prompts}': no such file", "a text file of prompts")
        for option, value in (("samples", self.samples), ("steps", self.steps)):
            if value < 1:
                raise UsageError(f"--calibration-{option}", str(value), "at least 1")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UsageError("--calibration-guidance", str(self.guidance), "a finite number")

    def digest(self) -> str:
        """SHA-256 of all that the recorded inputs depend on: settings, prompts, pictures, and the pipeline's files.

        Of the pipeline's folder count the index and the folders of its components, without weights in formats that
        are never read here (pickles, other frameworks').
        """
        components = (p for p in sorted(self.pipeline.iterdir()) if p.is_dir() and not p.name.startswith("."))
        files = [self.pipeline / "model_index.json", *(p for c in components for p in sorted(c.rglob("*")))]
        read = [p for p in files if p.is_file() and p.suffix not in _UNREAD]
        found = {str(p.relative_to(self.pipeline)): sha256(p) for p in read}
        pictures = [sha256(file) for prompt in read_prompts(self.prompts) for file in prompt.pictures]
        parts = {**asdict(self), "pipeline": found, "prompts": sha256(self.prompts), "pictures": pictures}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def require_transformers(option: str) -> None:
    """Raise UnsupportedError where the library of a pipeline's text encoders is not installed."""
    if find_spec("transformers") is None:
        raise UnsupportedError(
            option,
            "transformers is not installed",
            "it, as a pipeline's text encoders are its classes",
            install("transformers"),
        )


@dataclass(frozen=True)
class BuildConfig:
    """All options of a build, resolved; `archs` share every stage they can.

    Attributes:
        model: registry name. checkpoint / random_weights: where the weights come from (one of them, or neither
            for the model's hub id).
        archs: compute capabilities, 89 for sm_89. format: "auto" or a format name. rank: R, unless rank_auto is set.
        batch, height, width, tokens, tokens2, frames, images: profile ranges; sides in pixels, tokens of text.
        preset: quantizer search. calibration: safetensors file with inputs, or None for synthetic ones.
        device: auto, cpu or cuda, of calibration and quantizer.
        sampling: record the inputs in a pipeline instead.
        out: output root. backend: auto, tensorrt or tensorrt-rtx.
        fuse_mlp: two linears with GELU, GEGLU or SwiGLU between them are one op, where there is one.
        attention: auto, plugin or tensorrt: whose attention an engine has.
        weight_streaming: engines run with fewer of their weights in GPU memory, if asked to.
        streamed_parts: those of a pipeline beside the denoiser whose engines do so, where not all do.
        step_cache: engines can skip blocks at steps that change little.
        check: compare with the FP16 model. min_sqnr: gate in dB.
        loras: LoRAs to put into the low-rank branches, after quantization.
        lora_slots: rank per linear to fill at run time.
        allow_partial: leave out the parts of a LoRA file that do not fit, instead of refusing the file.
        quantized: a quantized checkpoint (ours or another tool's) to use instead of the quantizer and all its
            options.
        pipeline: folder of the diffusers pipeline whose other models become engines too. quantize_text: its T5
            or language model in 4 bits.
        vae_tile: pixels of a side, above which its autoencoder works by tiles of that size.
        force: ignore finished stages. skip: name patterns of linears to keep in 16 bit.
    """

    model: str
    archs: tuple[int, ...]
    out: Path
    checkpoint: str | None = None
    random_weights: int | None = None
    format: str = "auto"
    rank: int = 32
    batch: Range | None = None
    height: Range | None = None
    width: Range | None = None
    tokens: Range | None = None
    tokens2: Range | None = None
    frames: Range | None = None
    images: Range | None = None
    preset: str = DEFAULT_PRESET
    device: str = "auto"
    calibration: Path | None = None
    backend: str = "auto"
    fuse_mlp: bool = True
    attention: str = "auto"
    weight_streaming: bool = False
    streamed_parts: tuple[str, ...] = ()
    step_cache: bool = False
    check: bool = True
    min_sqnr: float | None = None
    force: bool = False
    skip: tuple[str, ...] = ()
    loras: tuple[LoraOption, ...] = ()
    lora_slots: int = 0
    allow_partial: bool = False
    quantized: Path | None = None
    sampling: Sampling | None = None
    rank_auto: RankAuto | None = None
    pipeline: Path | None = None
    quantize_text: bool = False
    vae_tile: int = VAE_TILE

    def __post_init__(self) -> None:
        if self.rank_auto is not None:
            self.rank_auto.check()
        if self.pipeline is not None:
            require_transformers("--pipeline")
        elif self.quantize_text:
            raise UsageError("--quantize-text", "given alone", "--pipeline with it")
        elif self.vae_tile != VAE_TILE:
            raise UsageError("--vae-tile", "given alone", "--pipeline with it")
        elif self.streamed_parts:
            raise UsageError("--weight-streaming", f"'{self.streamed_parts[0][:80]}', a part", "--pipeline with it")
        if self.vae_tile % TILE_MULTIPLE or self.vae_tile < TILE_MULTIPLE:
            raise UsageError("--vae-tile", str(self.vae_tile), f"a multiple of {TILE_MULTIPLE}")
        for lora in self.loras:
            lora.check()
        if self.lora_slots % R_MULTIPLE or not 0 <= self.lora_slots <= R_MAX:
            raise UsageError("--lora-slots", str(self.lora_slots), f"a multiple of {R_MULTIPLE} from 0 to {R_MAX}")
        if self.rank % R_MULTIPLE or not 0 <= self.rank <= R_MAX:
            raise UsageError("--rank", str(self.rank), RANK_WANT)
        if self.step_cache and self.weight_streaming:
            raise UsageError("--step-cache", "given with --weight-streaming", "one of them")
        get_preset(self.preset)
        check_device(self.device)
        if self.sampling is not None:
            self.sampling.check()
            if self.calibration is not None:
                raise UsageError("--calibration", "given with --calibration-prompts", "one of them")
        if self.calibration is not None and not self.calibration.is_file():
            raise UsageError("--calibration", f"'{self.calibration}': no such file", "a .safetensors file")
        if self.checkpoint is not None and self.random_weights is not None:
            raise UsageError("--checkpoint and --random-weights", "both", "one of them")
        if self.quantized is not None and self.check and self.checkpoint is None and self.random_weights is None:
            raise UsageError(
                "--quantized",
                "a check without 16-bit weights",
                "--checkpoint to compare with",
                "Add it, or --no-check.",
            )
        if self.min_sqnr is not None and not self.check:
            raise UsageError("--min-sqnr", "given with --no-check", "the check to be on", "Drop --no-check.")
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):  # NaN would pass every comparison
            raise UsageError("--min-sqnr", f"{self.min_sqnr}", "a finite number of dB")

    def of_part(self, name: str) -> BuildConfig:
        """The options of the engine of a pipeline's part, which has no step cache."""
        return replace(
            self,
            weight_streaming=self.weight_streaming or name in self.streamed_parts,
            streamed_parts=(),
            step_cache=False,
        )

    @property
    def rank_text(self) -> str:
        """R, or auto."""
        return str(self.rank) if self.rank_auto is None else "auto"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dict, for the manifest."""
        data = asdict(self)
        for key in ("out", "calibration", "quantized", "pipeline"):
            data[key] = None if data[key] is None else str(data[key])
        if self.sampling is not None:
            paths = {"pipeline": str(self.sampling.pipeline), "prompts": str(self.sampling.prompts)}
            data["sampling"] = asdict(self.sampling) | paths
        if self.rank_auto is not None:
            data["rank"] = "auto"
            path = self.rank_auto.sensitivity
            data["rank_auto"]["sensitivity"] = None if path is None else str(path)
        data["loras"] = [{"path": str(lora.path), "strength": lora.strength} for lora in self.loras]
        return data
