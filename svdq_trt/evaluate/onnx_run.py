"""One ONNX file through Polygraphy's ONNX Runtime runner, outputs saved as .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from svdq_trt.base.errors import SvdqError
from svdq_trt.base.files import atomic_write


def run_onnx(onnx: Path, feed: dict[str, np.ndarray], out: Path) -> float:
    """Run `onnx` once on `feed` and write its outputs to `out` (.npz). Returns the seconds of the run.

    Raises:
        SvdqError: ONNX Runtime refuses the file or the inputs.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException

    runner = OnnxrtRunner(SessionFromOnnx(str(onnx)), name=onnx.stem)
    try:
        results = Comparator.run([runner], data_loader=[feed])
    except PolygraphyException as error:
        raise SvdqError(str(onnx), str(error), "a graph that ONNX Runtime runs") from error
    except Exception as error:  # onnxruntime's own exceptions have no common base
        if type(error).__module__.startswith("onnxruntime"):
            raise SvdqError(str(onnx), str(error), "a graph that ONNX Runtime runs") from error
        raise
    (result,) = results[runner.name]
    with atomic_write(out) as tmp, tmp.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(value) for name, value in result.items()})
    return float(result.runtime)
