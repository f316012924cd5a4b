"""What a checkpoint is, from its headers alone: whose, of which model, in which formats, and what to do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, SvdqError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.checkpoint.load import CheckpointWeights
from svdq_trt.checkpoint.locate import locate
from svdq_trt.contract.archs import KERNELS
from svdq_trt.interop.container import files_of, header_object, open_reader
from svdq_trt.interop.families import family_of
from svdq_trt.interop.makers import OWN, maker_of
from svdq_trt.interop.reader import Reader
from svdq_trt.models import MODELS, ModelSpec

#: bytes of an element, by the name that safetensors has for its dtype
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
_SCALES = (".wscales", ".weight_scale")
#: names of the low-rank down factor, and which axis is the rank
_RANKS = {"proj_down": 1, "weight_proj_down": 1, "lora_down": 1, "svdquant_lora_a": 0}


@dataclass(frozen=True)
class Survey:
    """A checkpoint.

    Attributes:
        maker: whose it is; "" for one that is not quantized, or not known.
        models: names of the models that it is for, as far as its headers say.
        layers: format -> number of quantized layers. ranks: of their low-rank branches.
        bytes: of all that belongs to quantized layers, and of the other tensors by dtype.
        dense: layers whose weight is a matrix of floats.
        refusal: why it is not read; "" if it is. uses: commands, or what else to do with it.
    """

    maker: str
    models: tuple[str, ...]
    layers: dict[str, int]
    ranks: tuple[int, ...]
    bytes: dict[str, int]
    dense: tuple[str, ...]
    refusal: str
    uses: tuple[str, ...]


def survey(path: Path) -> Survey:
    """Look at a checkpoint, quantized or not, of a model that this tool has. Raises ArtifactError: nothing readable."""
    reader, spec = _open(path)
    if "svdq" in reader.metadata:
        return _own(reader, files_of(spec, path)[0][0], path)
    layers = dict(_layers(reader))
    maker, refusal, complete = "", "", True
    try:
        found = maker_of(reader)
        assert found is not None
        maker, complete = found.name, found.complete
    except SvdqError as error:
        refusal = str(error) if layers or _declares(reader) else ""
    models = _models(reader, path, layers)
    use = _uses(path, models, bool(layers), complete, layers) if not refusal else ()
    ranks = tuple(sorted(set(_ranks(reader, layers))))
    dense = tuple(n.removesuffix(".weight") for n in reader.names if _is_dense(reader, n, layers))
    return Survey(maker, models, dict(Counter(layers.values())), ranks, _bytes(reader, layers), dense, refusal, use)


def _open(path: Path) -> tuple[Reader, ModelSpec]:
    """The checkpoint, as a model's whose folder of a pipeline has it. Raises ArtifactError: no model's."""
    errors = []
    for spec in {spec.subfolder: spec for spec in MODELS.values()}.values():
        try:
            return open_reader(spec, path), spec
        except ArtifactError as error:
            errors.append(error)
    raise errors[0]


def _own(reader: Reader, file: Path, path: Path) -> Survey:
    nodes = svdq_file.read_nodes(file)
    model = header_object(reader, "svdq").get("model")
    quantized = {node.name: node.format for node in nodes}
    dense = tuple(n.removesuffix(".weight") for n in reader.names if _is_dense(reader, n, quantized))
    formats = Counter(quantized.values())
    if model in MODELS:
        uses = [f"svdq-trt build --model {model} --quantized {path} --arch {_archs(set(formats))}"]
        uses += [f"svdq-trt {to} {path} --out ..." for to in ("to-nunchaku", "to-lite", "to-comfy")]
    else:
        uses = ["no model of this tool has this name (svdq-trt models): it is of --model FOLDER, or of --pipeline"]
    ranks = tuple(sorted({node.rank for node in nodes}))
    return Survey(OWN, (str(model),), dict(formats), ranks, _bytes(reader, quantized), dense, "", tuple(uses))


def _layers(reader: Reader) -> Iterator[tuple[str, str]]:
    """(layer, format) of each quantized layer, by its tensors."""
    for name in reader.names:
        if not name.endswith(_SCALES):
            continue
        layer = name.rpartition(".")[0]
        if any(reader.has(f"{layer}.{zeros}") for zeros in ("wzeros", "weight_zero", "weight_zeros")):
            yield layer, "w4a16"
        elif reader.kind(name) == "F8_E4M3":
            yield layer, "nvfp4"
        elif any(
            reader.has(f"{layer}.{codes}") and reader.kind(f"{layer}.{codes}") == "I8"
            for codes in ("qweight", "weight")
        ):
            yield layer, "int4"
        else:
            yield layer, "another format"


def _declares(reader: Reader) -> bool:
    configs = (header_object(reader, key).get("quantization_config") for key in ("config", "config.json"))
    return any(config is not None for config in configs)


def _ranks(reader: Reader, layers: dict[str, str]) -> Iterator[int]:
    for layer in layers:
        for leaf, axis in _RANKS.items():
            if reader.has(f"{layer}.{leaf}") and len(shape := reader.shape(f"{layer}.{leaf}")) == 2:
                yield shape[axis]


def _is_dense(reader: Reader, name: str, layers: dict[str, str]) -> bool:
    layer = name.removesuffix(".weight")
    return layer != name and layer not in layers and len(reader.shape(name)) > 1


def _bytes(reader: Reader, layers: dict[str, str]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name in reader.names:
        kind = reader.kind(name)
        size = prod(reader.shape(name)) * _SIZES.get(kind, 1)
        total["quantized layers" if name.rpartition(".")[0] in layers else kind] += size
    return dict(total)


def _models(reader: Reader, path: Path, layers: dict[str, str]) -> tuple[str, ...]:
    """Names of models with the checkpoint's configuration; where it has none, with most of its tensors."""
    config = header_object(reader, "config") or header_object(reader, "config.json")
    config.pop("quantization_config", None)
    if "_class_name" in config:
        return tuple(spec.name for spec in MODELS.values() if _has_config(spec, config, str(path)))
    if not layers:
        return tuple(spec.name for spec in MODELS.values() if _has_weights(spec, path))
    shared = {name: _shared(spec, reader, layers) for name, spec in MODELS.items()}
    most = max(shared.values())
    return tuple(name for name, count in shared.items() if count == most > 0)


def _has_config(spec: ModelSpec, config: dict[str, object], where: str) -> bool:
    family = family_of(spec.model_class().__name__)
    try:
        compare_config(spec, config, where, family.names if family else ())
    except ArtifactError:
        return False
    return True


def _has_weights(spec: ModelSpec, path: Path) -> bool:
    try:
        CheckpointWeights(spec, locate(spec, str(path)))
    except SvdqError:
        return False
    return True


def _shared(spec: ModelSpec, reader: Reader, layers: dict[str, str]) -> int:
    """The number of parameters that the checkpoint has by their own names; 0 if one has another shape."""
    packed = {f"{layer}.weight" for layer in layers}
    shapes = {name: tuple(p.shape) for name, p in spec.build().state_dict().items() if name not in packed}
    names = [name for name in reader.names if name in shapes]
    return len(names) if all(reader.shape(name) == shapes[name] for name in names) else 0


def _uses(
    path: Path, models: tuple[str, ...], quantized: bool, complete: bool, layers: dict[str, str]
) -> tuple[str, ...]:
    if not models:
        return ("no model of this tool has these tensors (svdq-trt models)",)
    if not quantized:
        return (f"svdq-trt build --model {models[0]} --checkpoint {path} --arch sm_89",)
    rest = "" if complete else " --checkpoint 16-BIT-WEIGHTS"
    archs = _archs(set(layers.values()))
    return (f"svdq-trt build --model {models[0]} --quantized {path}{rest} --arch {archs}",)


def _archs(formats: set[str]) -> str:
    """The GPUs that have kernels for all of these formats, for people."""
    return " or ".join(f"sm_{arch}" for arch, kernels in KERNELS.items() if formats <= set(kernels)) or "(none)"
