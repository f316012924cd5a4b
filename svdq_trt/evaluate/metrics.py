"""Accuracy of a quantized model's outputs against full precision, by Polygraphy's compare functions.

Polygraphy takes the signal power of SNR from its *first* result, while its element-wise comparison is relative to
the *second*; this file owns that order. Its 1e-5 default tolerances are never used: figures are reported, and the
gate is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from svdq_trt.artifact.manifest import OutputEntry
from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract.sqnr import MOST_DB


def compare(reference: Path, quantized: Path) -> list[OutputEntry]:
    """Per-output figures of two .npz files with the same outputs, of several inputs along the first axis.

    An output that depends on no quantized layer, as a ControlNet's first does, has MOST_DB.

    Raises:
        ArtifactError: different outputs or shapes, or NaN in either.
    """
    ref, got, names = load_outputs(reference), load_outputs(quantized), (str(reference), str(quantized))
    together = compare_outputs(ref, got, names)
    each = []
    for i in range(min(len(value) for value in ref.values())):
        one = [{name: value[i] for name, value in side.items()} for side in (ref, got)]
        each.append(compare_outputs(one[0], one[1], names))
    found = zip(together, *each, strict=True)
    return [
        msgspec.structs.replace(
            all_, sqnr_db=min(all_.sqnr_db, MOST_DB), each_db=tuple(min(e.sqnr_db, MOST_DB) for e in single)
        )
        for all_, *single in found
    ]


def compare_outputs(
    ref: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], names: tuple[str, str]
) -> list[OutputEntry]:
    """Per-output figures of f64 outputs; `names` are those of the reference and of the candidate.

    Raises:
        ArtifactError: different outputs or shapes, or NaN in either.
    """
    from polygraphy.comparator import CosineSimilarityCompareFunc, SimpleCompareFunc, SnrCompareFunc
    from polygraphy.comparator.struct import IterationResult
    from polygraphy.logger import G_LOGGER

    if {n: v.shape for n, v in ref.items()} != {n: v.shape for n, v in got.items()}:
        raise ArtifactError(names[1], "other outputs or shapes than the reference", f"those of {names[0]}")
    for where, outputs in zip(names, (ref, got), strict=True):
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ArtifactError(f"{where}: output {name}", "NaN or Inf", "finite values", "Check the checkpoint.")
    first, second = IterationResult(ref, runner_name="fp16"), IterationResult(got, runner_name="quantized")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        snr = SnrCompareFunc(snr_threshold=0.0)(first, second)  # reference first
        cosine = CosineSimilarityCompareFunc(cosine_similarity_threshold=0.0)(first, second)
        simple = SimpleCompareFunc(atol=np.inf, rtol=np.inf)(second, first)  # reference second
    return [
        OutputEntry(
            name,
            float(snr[name].snr),
            float(cosine[name].cosine_similarity),
            float(simple[name].max_absdiff),
            float(np.abs(ref[name]).max()),
        )
        for name in ref
    ]


def load_outputs(path: Path) -> dict[str, np.ndarray]:
    """Outputs saved by run_onnx, as f64."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].astype(np.float64) for name in file.files}
