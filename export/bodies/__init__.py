"""Model-local functions: what each svdq node means, in standard operators."""

from svdq_export.bodies.build import OPSET
from svdq_export.bodies.function import build_function

__all__ = ["OPSET", "build_function"]
