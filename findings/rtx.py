"""What the findings about TensorRT-RTX share: parse ONNX text and build it for a GPU that need not be there."""

from typing import Any

import onnx
import onnx.parser
import tensorrt_rtx as trt


class _Log(trt.ILogger):
    """Keeps warnings and errors in `lines`. One for the process: TensorRT keeps to the first that it gets."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        if severity <= trt.ILogger.WARNING and "current new logger is ignored" not in message:
            self.lines.append(message)


LOG = _Log()


class Parsed:
    """A graph as TensorRT-RTX's parser took it.

    Args:
        text: a model in ONNX's text syntax, which onnx.checker must accept.
    """

    def __init__(self, text: str) -> None:
        model = onnx.parser.parse_model(text)
        onnx.checker.check_model(model, full_check=True)
        LOG.lines.clear()
        self.builder = trt.Builder(LOG)
        self.network = self.builder.create_network(0)
        parser = trt.OnnxParser(self.network, LOG)
        self.ok: bool = parser.parse(model.SerializeToString())
        self.errors = "\n".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        self.warnings = list(LOG.lines)

    @property
    def layers(self) -> list[Any]:
        """The network's layers, each as an object of its own class."""
        found = [self.network.get_layer(i) for i in range(self.network.num_layers)]
        classes = {
            trt.LayerType.UNARY: trt.IUnaryLayer,
            trt.LayerType.ACTIVATION: trt.IActivationLayer,
            trt.LayerType.CONSTANT: trt.IConstantLayer,
        }
        for layer in found:
            if layer.type in classes:
                layer.__class__ = classes[layer.type]
        return found

    def build(self, *archs: int, profiles: list[dict[str, Any]] | None = None) -> bytes | None:
        """The plan for these compute capabilities, as 89; None: refused.

        Args:
            profiles: per optimization profile, input -> (min, opt, max) shapes.
        """
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = len(archs)
        for i, arch in enumerate(archs):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{arch}"), i)
        for shapes in profiles or []:
            profile = self.builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, least, usual, most)
            config.add_optimization_profile(profile)
        LOG.lines.clear()
        plan = self.builder.build_serialized_network(self.network, config)
        return None if plan is None else bytes(plan)
