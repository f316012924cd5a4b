"""The plugin layers of an engine, as TensorRT itself reports them; also where there is no GPU.

An engine cannot be deserialized without a GPU, so the engine inspector is out of reach on a build machine.
But with ``ProfilingVerbosity.DETAILED`` the builder logs the same text as one VERBOSE message that begins
with ``Layers:``. `LayerReport` picks that message out of a log, and `engine_layers` reads it, or reads what
``inspector.get_engine_information(LayerInformationFormat.ONELINE)`` returns on a machine with a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

#: LayerType of a plugin: TensorRT-RTX's compiler, and TensorRT's own executor.
_PLUGIN_TYPES = frozenset({"custom_layer", "PluginV3", "PLUGIN_V3"})

_TENSOR = re.compile(r"Name: (?P<name>\S+), Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor of a layer; -1 in `shape` is a dynamic dimension, `dtype` is TensorRT's word (``Half``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a compiled engine.

    Attributes:
        name: the engine's name for it.
        type: TensorRT's LayerType.
        nodes: names of the ONNX nodes that it was made from.
        inputs: activations first, then constants, each in the op's order.
        outputs: results, then a plugin's workspace.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


class LayerReport:
    """Collector of the engine's layers from a builder's log. Call `feed` with every message of the logger.

    The logger must let VERBOSE messages through, and the builder config must have
    ``profiling_verbosity = ProfilingVerbosity.DETAILED``.
    """

    def __init__(self) -> None:
        self.layers: list[EngineLayer] = []

    def feed(self, message: str) -> None:
        """Take one log message; all but the layer report are ignored."""
        if message.startswith("Layers:"):
            self.layers += engine_layers(message)

    @property
    def plugins(self) -> list[EngineLayer]:
        """The plugin layers seen so far."""
        return [layer for layer in self.layers if layer.type in _PLUGIN_TYPES]

    def plugin_nodes(self, known: Container[str]) -> list[str]:
        """The nodes in them that are `known` to be plugins.

        A layer is also made from nodes that compute, of constants alone, what its plugin reads.
        """
        return [node for layer in self.plugins for node in layer.nodes if node in known]


def _tensors(line: str, field: str) -> tuple[EngineTensor, ...]:
    match = re.search(rf", {field}: \[( \{{.*?\}})\]", line)  # an empty list has no braces and does not match
    found = _TENSOR.finditer(match[1]) if match else ()
    return tuple(EngineTensor(m["name"], tuple(int(d) for d in m["dims"].split(",") if d), m["dtype"]) for m in found)


def engine_layers(report: str) -> list[EngineLayer]:
    """All layers in a layer report; lines that describe no layer are skipped."""
    layers = []
    for line in report.split("\n"):  # splitlines would also split between the nodes of a layer, which \x1e may part
        head = re.match(r"\s*Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: ", line)
        if head:
            nodes = tuple(re.findall(r"\[ONNX Layer: (.*?)\](?=[\[\x1e\x1f]|$)", line))
            inputs = _tensors(line, "Inputs") + _tensors(line, "Constants")
            layers.append(EngineLayer(head["name"], head["type"], nodes, inputs, _tensors(line, "Outputs")))
    return layers


def network_plugins(trt: Any, network: Any) -> dict[str, str]:
    """Layer name -> op type of each plugin in a parsed network, before it is compiled."""
    found = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            found[layer.name] = core.plugin_name
    return found
