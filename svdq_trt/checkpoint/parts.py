"""The parts of a pipeline beside its denoiser: their weights' identity, and the modules, read by the own library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.tensor_file import TensorFile
from svdq_trt.base.errors import ArtifactError, first_line
from svdq_trt.base.files import sha256
from svdq_trt.checkpoint.declared import refuse_quantized
from svdq_trt.checkpoint.digest import Identity
from svdq_trt.checkpoint.load import require_equal
from svdq_trt.checkpoint.locate import Source, locate_component
from svdq_trt.models.parts import Part

#: names of a language model beside a vision tower -> those in a model of its layers alone
_RENAMED = {r"^(model\.language_model|language_model\.model)\.": "model."}


def check_part(part: Part, config: Path, sizes: Mapping[str, int]) -> int:
    """Check that a part's module can be built of its config, which was read at `config`, and run; it takes no memory.

    T5's does not run without values: transformers looks into its mask.

    Args:
        sizes: of the inputs, by their symbols.

    Returns:
        the bytes of its weights.

    Raises:
        UnsupportedError: a quantized one. ArtifactError: values that its class does not take.
    """
    refuse_quantized(part.config, config)
    try:
        with torch.device("meta"):
            graph = part.wrap(part.build())
            if part.class_name != "T5EncoderModel":
                _check_outputs(part, graph(*part.example_inputs(**sizes)), sizes)
            return sum(p.numel() for p in graph.parameters()) * part.torch_dtype.itemsize
    except Exception as error:  # whatever a class makes of values of any type
        raise ArtifactError(str(config), first_line(error), f"the config of a {part.class_name}") from error


def _check_outputs(part: Part, found: Any, sizes: Mapping[str, int]) -> None:
    """Raise ValueError for outputs of another shape than the part says."""
    for io, value in zip(part.outputs, found if isinstance(found, tuple) else (found,), strict=True):
        if tuple(value.shape) != io.shape(sizes):
            raise ValueError(f"{io.name} of {list(value.shape)} in the place of {list(io.shape(sizes))}")


def locate_part(part: Part, pipeline: Path, variant: str) -> Source:
    """Find a part's weights in the folder of a pipeline.

    Raises:
        ArtifactError: a file that is damaged. Errors of locate.locate_component.
    """
    found = locate_component(pipeline / part.component, part.graph.library, variant)
    for file in found.files:
        TensorFile(file)  # which reads its header
    return found


def identify_part(part: Part, source: Source | None, random_seed: int | None) -> Identity:
    """Hash a part's config and its weights, as digest.identify_weights; `source` is None for random ones."""
    h = hashlib.sha256(json.dumps([part.class_name, part.act_dtype, part.config], sort_keys=True).encode())
    if source is None:
        h.update(f"random:{random_seed}".encode())
        return Identity(f"sha256:{h.hexdigest()}")
    files = tuple(FileEntry(path.name, path.stat().st_size, sha256(path)) for path in source.files)
    for file in files:
        h.update(bytes.fromhex(file.sha256))
    return Identity(f"sha256:{h.hexdigest()}", files, source.notes)


def load_part(part: Part, pipeline: Path, variant: str, random_seed: int | None) -> nn.Module:
    """Load what a part's graph computes of its module, in its act dtype, on the CPU.

    Args:
        pipeline: the pipeline's folder. variant: see locate.locate_component.
        random_seed: make weights from this seed instead, as the module's class initializes them.

    Raises:
        ArtifactError: files that are missing or that the module's library does not read.
        ShapeError: tensors missing.
    """
    if random_seed is not None:
        with torch.random.fork_rng():
            torch.manual_seed(random_seed)
            return part.build()
    source = locate_part(part, pipeline, variant)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}  # no pickles
    if part.graph.library == "transformers":
        options |= {"dtype": part.torch_dtype, "config": part.module_config, "key_mapping": _RENAMED}
    else:
        options["torch_dtype"] = part.torch_dtype
    if variant and f".{variant}" in source.files[0].name:
        options["variant"] = variant
    root = pipeline / part.component
    try:
        module, found = part.module_class.from_pretrained(root, output_loading_info=True, **options)
    except Exception as error:  # whatever the folder's files make the library stumble over
        raise ArtifactError(str(root), f"cannot be loaded ({first_line(error)})", f"a {part.class_name}") from error
    names = module.state_dict().keys()
    require_equal(str(root), names, names - set(found["missing_keys"]))  # which the library makes up
    return part.cut(module)
