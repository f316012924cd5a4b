"""Names of tensors in published files: diffusers' own or the original ones, behind the prefixes that tools leave."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from svdq_trt.base.errors import ArtifactError, UnsupportedError, first_line
from svdq_trt.base.needs import need
from svdq_trt.models import ModelSpec

Shapes = Mapping[str, tuple[int, ...]]

_ORIGINAL_PREFIX = "model.diffusion_model."  # diffusers' conversions know it, and one of them needs it

#: Containers a model may lie in: a pipeline, ComfyUI's file, a model of texts and images, DataParallel, torch.compile.
_CONTAINERS = r"((model\.diffusion_model|diffusion_model|unet|transformer|language_model|model|module|_orig_mod)\.)*"


@dataclass(frozen=True)
class Original:
    """Names that a class of diffusers had before diffusers.

    Attributes:
        anchor: a tensor that every such file has. dropped: tensors that diffusers' conversion leaves out: the class
            has no use for them.
    """

    anchor: str
    dropped: tuple[str, ...] = ()


_ORIGINALS = {
    "UNet2DConditionModel": Original("input_blocks.0.0.weight"),
    "FluxTransformer2DModel": Original("double_blocks.0.img_attn.qkv.weight"),
    "SD3Transformer2DModel": Original("joint_blocks.0.x_block.attn.qkv.weight"),
    "PixArtTransformer2DModel": Original("blocks.0.cross_attn.q_linear.weight"),
    "SanaTransformer2DModel": Original("blocks.0.cross_attn.q_linear.weight", ("pos_embed", "y_embedder.y_embedding")),
}

#: (pattern of a name, what a file with such a tensor is, what to do with it)
_OTHER_FILES = (
    (r".*\.(qweight|wscales)", "a file with weights in 4 bits", "Give it as --quantized."),
    (
        r".*[._](lora[._](up|down|A|B|mid)\b|hada_w\d|lokr_w\d|oft_).*",
        "a LoRA",
        "Give the model as --checkpoint and this file as --lora.",
    ),
    (r".*(scaled_fp8|scale_weight|weight_scale|comfy_quant)", "fp8 weights with scales", "Use a 16-bit checkpoint."),
    (r".*\.(absmax|quant_map|quant_state\..*)", "weights that bitsandbytes quantized", "Use a 16-bit checkpoint."),
)


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a tensor in a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Found:
    """Where a model's tensors are in a file.

    Attributes:
        rows: diffusers' name -> the rows that make up the tensor. original: whether the file has the original names.
    """

    rows: dict[str, tuple[Rows, ...]]
    original: bool


def find_tensors(spec: ModelSpec, own: Collection[str], shapes: Shapes, where: str) -> Found:
    """Find a model's tensors in a file.

    Args:
        own: diffusers' names of the model's tensors. shapes: of all tensors in the file.
        where: the file, for errors.

    Raises:
        ArtifactError: two models in one file, or original names that don't convert. UnsupportedError: a file of another
            kind, named.
    """
    original = _ORIGINALS.get(spec.model_class().__name__)
    # The original names first: some of them are diffusers' names as well.
    for anchors, convert in (((original.anchor,) if original else (), _converted), (own, _as_they_are)):
        prefixes = sorted({p for name in shapes for p in [_container(name, anchors)] if p is not None})
        if len(prefixes) > 1:
            raise ArtifactError(where, f"models under '{prefixes[0]}' and '{prefixes[1]}'", "one model in a file")
        if prefixes:
            inside = {n.removeprefix(prefixes[0]): s for n, s in shapes.items() if n.startswith(prefixes[0])}
            rows = convert(spec, inside, where)
            full = {
                new: tuple(Rows(prefixes[0] + r.name, r.start, r.stop) for r in parts) for new, parts in rows.items()
            }
            return Found(full, convert is _converted)
    refuse_other_files(spec, shapes, where)
    _refuse_other_models(spec, shapes, where)
    return Found(_as_they_are(spec, shapes, where), False)


def refuse_other_files(spec: ModelSpec, names: Collection[str], where: str) -> None:
    """Raise UnsupportedError naming what a file is, if its tensors tell; of a model's names, these are none."""
    for pattern, what, fix in _OTHER_FILES:
        example = next((n for n in names if re.fullmatch(pattern, n)), None)
        if example is not None:
            raise UnsupportedError(where, f"{what} ('{example}')", f"16-bit weights of {spec.name}", fix)


def _refuse_other_models(spec: ModelSpec, shapes: Shapes, where: str) -> None:
    """Raise UnsupportedError naming the model that diffusers takes a file for, if it knows it."""
    import diffusers  # noqa: F401 - for build/code.py, as in models/spec.py

    infer = need("diffusers", "diffusers.loaders.single_file_utils", "infer_diffusers_model_type")

    try:
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        model: str = infer(tensors)
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError):
        return
    if model != "v1":  # its word for all that it does not know
        raise UnsupportedError(where, f"a file that diffusers takes for {model}", f"weights of {spec.title}")


def _container(name: str, anchors: Collection[str]) -> str | None:
    """The containers in front of a name that leads to an anchor, "" for none; None: it leads to no anchor."""
    prefix = re.match(_CONTAINERS, name)
    assert prefix is not None  # it may be empty
    return prefix[0] if name[prefix.end() :] in anchors else None


def _as_they_are(spec: ModelSpec, shapes: Shapes, where: str) -> dict[str, tuple[Rows, ...]]:
    return {
        name: (Rows(name, 0, _count(shape)),) for name, shape in shapes.items() if not re.fullmatch(spec.unread, name)
    }


def _converted(spec: ModelSpec, shapes: Shapes, where: str) -> dict[str, tuple[Rows, ...]]:
    """Rename by diffusers' own conversion, which also splits, joins and swaps rows.

    It never looks at values, so each tensor is represented by the numbers of its rows, and no weight is read.
    """
    import diffusers  # noqa: F401 - for build/code.py, as in models/spec.py

    name = spec.model_class().__name__
    known = need("diffusers", "diffusers.loaders.single_file_model", "SINGLE_FILE_LOADABLE_CLASSES")
    rules: Any = known.get(name)
    if rules is None:
        fix = "Convert it with the script of diffusers."
        raise UnsupportedError(where, f"the original names of {spec.title}", "diffusers' names", fix)
    convert: Callable[..., dict[str, torch.Tensor | None]] = rules["checkpoint_mapping_fn"]
    starts, names, numbers, end = [], list(shapes), {}, 0
    for old in names:
        starts.append(end)
        numbers[_ORIGINAL_PREFIX + old] = torch.arange(end, end + _count(shapes[old]))
        end += _count(shapes[old])
    try:
        made = convert(numbers, config=dict(spec.config))
        rows = {new: _decoded(value, starts, names) for new, value in made.items() if value is not None}
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        refuse_other_files(spec, shapes, where)
        reason = first_line(error, 120)
        raise ArtifactError(
            where, f"original-format keys that don't convert ({reason})", f"a checkpoint of {spec.title}"
        ) from error
    used = {part.name for parts in rows.values() for part in parts}
    left = sorted(set(shapes) - used - set(_ORIGINALS[name].dropped))
    if left:
        refuse_other_files(spec, left, where)
        raise ArtifactError(where, f"'{left[0]}' besides original-format keys", f"a checkpoint of {spec.title}")
    return rows


def _decoded(numbers: torch.Tensor, starts: Sequence[int], names: Sequence[str]) -> tuple[Rows, ...]:
    """The rows that the numbers stand for, in pieces as long as possible."""
    cuts = (numbers[1:] - numbers[:-1] != 1).nonzero().flatten() + 1
    parts: list[Rows] = []
    for piece in numbers.tensor_split(cuts.tolist()):
        first, last = int(piece[0]), int(piece[-1])
        while first <= last:  # neighbours in number may be neighbours in the file
            at = bisect_right(starts, first) - 1
            stop = starts[at + 1] if at + 1 < len(starts) else last + 1
            parts.append(Rows(names[at], first - starts[at], min(stop, last + 1) - starts[at]))
            first = stop
    return tuple(parts)


def _count(shape: tuple[int, ...]) -> int:
    """Number of rows; one for a scalar, none for a tensor without elements, however long."""
    return (shape[0] if shape else 1) if math.prod(shape) else 0
