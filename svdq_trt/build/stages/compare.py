"""Stage: outputs of both ONNX files -> accuracy figures and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: reference, quantized (npz files), artifact, title, plot."""
    from svdq_trt.artifact import svdq_file
    from svdq_trt.evaluate.metrics import compare
    from svdq_trt.evaluate.plot import plot_accuracy

    progress(0, 1, "comparing")
    accuracy = compare(Path(args["reference"]), Path(args["quantized"]))
    nodes = svdq_file.read_nodes(Path(args["artifact"]))
    plot_accuracy(nodes, accuracy, Path(args["reference"]), Path(args["quantized"]), args["title"], Path(args["plot"]))
    return {"outputs": [a.to_json() for a in accuracy]}
