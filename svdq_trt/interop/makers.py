"""Whose checkpoint a file is, by what it declares, and who reads it.

Names and shapes are shared between makers, the order of values is not. So a declaration decides: a quantization_config
in config.json, in the header or in a file beside, a mark in the header, a mark beside each layer. What is declared and
not known is refused by its name. What declares nothing is taken for nunchaku's alone, whose own files say nothing more
than names do; nunchaku_import.py then looks at the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.checkpoint.declared import described, method_of
from svdq_trt.checkpoint.load import Weights
from svdq_trt.interop import cache_dit, comfy
from svdq_trt.interop.cache_dit import read_cache_dit
from svdq_trt.interop.comfy import read_comfy
from svdq_trt.interop.container import BESIDE, header_object
from svdq_trt.interop.lite import read_lite
from svdq_trt.interop.modelopt import read_modelopt
from svdq_trt.interop.nunchaku_import import read_nunchaku
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import Imported
from svdq_trt.interop.vllm_omni import read_vllm_omni
from svdq_trt.models import ModelSpec

OWN = "svdq-trt"


@dataclass(frozen=True)
class Maker:
    """A tool that quantizes with SVDQuant, or a format that several write.

    Attributes:
        name: for people, and what an artifact says it was imported from.
        methods: what its files call themselves in a `quantization_config`.
        marks: metadata keys that its files alone have.
        read: the reader of its files.
        complete: whether they hold the whole model; else a 16-bit checkpoint has its other parameters.
    """

    name: str
    methods: tuple[str, ...]
    marks: tuple[str, ...]
    read: Callable[[Reader, ModelSpec, Weights | None], Imported]
    complete: bool = True


def _whole(read: Callable[[Reader, ModelSpec], Imported]) -> Callable[[Reader, ModelSpec, Weights | None], Imported]:
    """A reader of complete checkpoints: it needs no other."""
    return lambda reader, spec, rest: read(reader, spec)


NUNCHAKU = Maker("nunchaku", (), (), _whole(read_nunchaku))
MODELOPT = Maker("modelopt", ("modelopt", "NVFP4_SVD", "NVFP4", "MIXED_PRECISION"), (), _whole(read_modelopt))
LITE = Maker("nunchaku-lite", ("nunchaku_lite",), ("runtime_manifest",), _whole(read_lite))
VLLM_OMNI = Maker("vllm-omni", ("svdquant",), (), _whole(read_vllm_omni))
COMFY = Maker("comfy-kitchen", (), (comfy.METADATA,), _whole(read_comfy))
CACHE_DIT = Maker("cache-dit", ("cache_dit_svdq_quant_config",), (cache_dit.MARK,), read_cache_dit, complete=False)
MAKERS = (NUNCHAKU, LITE, CACHE_DIT, COMFY, VLLM_OMNI, MODELOPT)

_READ = f"a checkpoint of {', '.join(maker.name for maker in MAKERS)} or {OWN}"
_FIX = "Use a file of these, or quantize here with --checkpoint."


def maker_of(reader: Reader) -> Maker | None:
    """The maker of a checkpoint; None for our own artifact.

    Raises:
        ArtifactError: an unknown one, or two. UnsupportedError: one whose files are not read, by the name that the file
            gives.
    """
    if "svdq" in reader.metadata:
        return None
    declared: dict[str, tuple[str, Maker]] = {}
    for where, method in _methods(reader):
        maker = next((m for m in MAKERS if method in m.methods), None)
        if maker is None:
            raise UnsupportedError(where, f"quantized by {described(method)}", _READ, _FIX)
        declared.setdefault(maker.name, (where, maker))
    for maker in MAKERS:
        for key in (key for key in maker.marks if key in reader.metadata):
            declared.setdefault(maker.name, (f"metadata '{key}'", maker))
    if any(name.endswith(f".{comfy.MARK}") for name in reader.names):
        declared.setdefault(COMFY.name, (f"tensors '*.{comfy.MARK}'", COMFY))
    if len(declared) > 1:
        said = " and ".join(f"{name} ({where})" for name, (where, _) in sorted(declared.items()))
        raise ArtifactError(str(reader.where), f"declared as a file of {said}", "one of them")
    if declared:
        return next(iter(declared.values()))[1]
    return _undeclared(reader)


def _undeclared(reader: Reader) -> Maker:
    if any(name.endswith(".wscales") for name in reader.names):
        return NUNCHAKU
    if any(name.endswith(".weight_scale") for name in reader.names):
        got = "scales of weights, but nothing that says whose"
        raise ArtifactError(str(reader.where), got, "the folder with its config.json", _FIX)
    got = "no tensor of a known quantized format"
    raise ArtifactError(str(reader.where), got, _READ, "Give an unquantized one with --checkpoint.")


def _methods(reader: Reader) -> Iterator[tuple[str, str]]:
    """(where, method) of every `quantization_config`.

    The header's own is nunchaku's, or Nunchaku Lite's, with other keys: their readers compare it.
    """
    for key in ("config", "config.json"):
        where = f"{reader.where}: {key}: quantization_config"
        if method := method_of(header_object(reader, key).get("quantization_config"), where):
            yield where, method
    for key in BESIDE:
        if found := header_object(reader, key):
            yield f"{reader.where}: {key}", method_of(found, key)
    own = header_object(reader, "quantization_config")
    if any(key in own for key in ("quant_method", "quant_type")):
        where = f"{reader.where}: metadata 'quantization_config'"
        yield where, method_of(own, where)
