"""A small builder for function bodies: ONNX operators as calls, Python numbers as float constants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

OPSET = 23  # of every exported graph and body


class Body:
    """Collects the nodes of one function body.

    ``b("Mul", x, 0.5)`` appends a Mul and returns its output. A number among the inputs becomes a float
    ``Constant`` node, one per distinct value: TensorRT takes such constants on any path, while integer and
    string constants are refused on some. Constants are `value` tensors, which say their type: tools that fold
    constants make float64 of a `value_float` (findings/value_float_becomes_float64.sh).
    """

    def __init__(self) -> None:
        self._tape = ir.tape.Tape()
        self._floats: dict[float, ir.Value] = {}

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """All nodes so far, in order."""
        return self._tape.nodes

    def __call__(self, op_type: str, *inputs: ir.Value | float, **attributes: ir.Attr | object) -> ir.Value:
        """Append a node with one output."""
        values = [self.constant(v) if isinstance(v, (int, float)) else v for v in inputs]
        return self._tape.op(op_type, values, attributes=attributes)  # type: ignore[arg-type]

    def several(
        self, op_type: str, inputs: Sequence[ir.Value], outputs: int, **attributes: object
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        return self._tape.op_multi_out(op_type, inputs, attributes=attributes, num_outputs=outputs)  # type: ignore[arg-type]

    def split(self, x: ir.Value, parts: int) -> Sequence[ir.Value]:
        """Cut the last axis into equal parts."""
        return self.several("Split", [x], parts, axis=-1, num_outputs=parts)

    def constant(self, value: float) -> ir.Value:
        """A scalar f32."""
        value = float(value)
        if value not in self._floats:
            self._floats[value] = self._constant(np.float32(value))
        return self._floats[value]

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64, for shapes and axes."""
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: np.generic | np.ndarray) -> ir.Value:
        return self._tape.op("Constant", [], attributes={"value": ir.tensor(value)})

    def attribute(self, name: str, kind: str) -> ir.Value:
        """The function's numeric attribute `name` as a scalar f32; `kind` is "int" or "float"."""
        if kind == "float":
            ref = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
            return self._tape.op("Constant", [], attributes={"value_float": ref})
        ref = ir.RefAttr("value_int", name, ir.AttributeType.INT)
        return self.to_f32(self._tape.op("Constant", [], attributes={"value_int": ref}))

    def int_attribute(self, name: str) -> ir.Value:
        """The function's whole-number attribute `name` as an int64 of one element, for shapes."""
        ref = ir.RefAttr("value_int", name, ir.AttributeType.INT)
        return self("Reshape", self._tape.op("Constant", [], attributes={"value_int": ref}), self.ints(1))

    def to_f32(self, x: ir.Value) -> ir.Value:
        """Cast to f32."""
        return self("Cast", x, to=ir.DataType.FLOAT.value)

    def int8_to_f32(self, x: ir.Value) -> ir.Value:
        """int8 -> f32. Through DequantizeLinear, since TensorRT lets an int8 constant feed nothing else."""
        return self("DequantizeLinear", x, 1.0)

    def unsigned_byte(self, x: ir.Value) -> ir.Value:
        """int8 -> the byte's value 0..255 in f32."""
        v = self.int8_to_f32(x)
        return self("Where", self("Less", v, 0.0), self("Add", v, 256.0), v)

    def high_bits(self, v: ir.Value, divisor: float) -> tuple[ir.Value, ir.Value]:
        """Whole numbers in f32 -> (v // divisor, v % divisor), exact since `divisor` is a power of two."""
        high = self("Floor", self("Mul", v, 1.0 / divisor))
        return high, self("Sub", v, self("Mul", high, divisor))
