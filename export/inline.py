"""The plugin-free variant of a file: every svdq node replaced by its body, same data file.

For TensorRT without the plugin. Its parser inlines model-local functions by itself, but names the layer of a
DequantizeLinear as in the function, and so refuses the second call of an op type ("Failed attempt to
rename a layer"; seen with TensorRT-RTX 1.7.1). ONNX Runtime takes the original file.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from svdq_export.write import rewrite_beside


def write_inlined(onnx_path: Path) -> Path:
    """Write ``<stem>.inlined.onnx`` beside the file and return its path.

    Raises:
        ArtifactError: onnx.checker refuses the result.
    """
    model = ir.load(onnx_path)
    passes.InlinePass()(model)
    passes.NameFixPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return rewrite_beside(model, onnx_path, "inlined")
