"""One ONNX file through Polygraphy's ONNX Runtime runner, outputs of all inputs saved as one .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svdq_trt.base.errors import SvdqError
from svdq_trt.base.files import atomic_write


def run_onnx(onnx: Path, feeds: Sequence[dict[str, np.ndarray]], out: Path) -> float:
    """Run `onnx` on each of `feeds`, in one session; returns the seconds of all runs.

    Writes its outputs to `out` (.npz), those of different inputs along a new first axis: feeds are of one shape.

    Raises:
        SvdqError: ONNX Runtime refuses the file or the inputs.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException

    runner = OnnxrtRunner(SessionFromOnnx(str(onnx)), name=onnx.stem)
    try:
        results = Comparator.run([runner], data_loader=list(feeds))
    except PolygraphyException as error:
        raise SvdqError(str(onnx), str(error), "a graph that ONNX Runtime runs") from error
    except Exception as error:  # onnxruntime's own exceptions have no common base
        if type(error).__module__.startswith("onnxruntime"):
            raise SvdqError(str(onnx), str(error), "a graph that ONNX Runtime runs") from error
        raise
    runs = results[runner.name]
    outputs = {name: np.stack([np.asarray(run[name]) for run in runs]) for name in runs[0]}
    with atomic_write(out) as tmp, tmp.open("wb") as file:
        np.savez(file, allow_pickle=False, **outputs)
    return float(sum(run.runtime for run in runs))
