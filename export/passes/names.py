"""Name every svdq node after the module that it came from.

TensorRT takes a node's name for its layer, and the manifest lists layers by module path: both must agree.
"""

from __future__ import annotations

import ast
from collections.abc import Set

import onnx_ir as ir

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.ops import DOMAIN, OPS

_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's list of module paths, ending with the fx node


def name_svdq_nodes(model: ir.Model) -> list[str]:
    """Rename the nodes in place; returns the names in graph order. A module called n times: path, path#2, … path#n.

    An attention's node bears the name of the attention.

    The exporter's own record of the module stack comes first; the name of the node's `qweight` is the
    fallback. The order matters: tied weights carry one module's name and serve several.
    A layer that is itself the exported module has no path and is called "linear" or "attention".
    """
    names: list[str] = []
    calls: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        path = _module_path(node) or _qweight_owner(node) or ("linear" if node.op_type in OPS else "attention")
        calls[path] = calls.get(path, 0) + 1
        node.name = path if calls[path] == 1 else f"{path}#{calls[path]}"
        names.append(node.name)
    return names


def drop_prefix(model: ir.Model, prefix: str) -> None:
    """Take ``<prefix>.`` off the names of nodes and initializers: the path inside a wrapper module."""
    for node in model.graph.all_nodes():
        node.name = (node.name or "").removeprefix(f"{prefix}.")
    for value in list(model.graph.initializers.values()):
        value.name = (value.name or "").removeprefix(f"{prefix}.")


def require_all_nodes(model: ir.Model, parameters: Set[str]) -> None:
    """Refuse a model with a quantized layer on which no output depends: the graph lacks it, and so would the plan.

    Args:
        parameters: names in the model that was traced, without the wrapper's prefix; a layer has a `qweight`.

    Raises:
        UnsupportedError: the first such layer, by name.
    """
    named = {(node.name or "").partition("#")[0] for node in model.graph.all_nodes() if node.domain == DOMAIN}
    layers = {name.removesuffix(".qweight") for name in parameters if name.endswith(".qweight")}
    if lost := sorted(layers - named):
        raise unread(lost[0])


def unread(layer: str) -> UnsupportedError:
    """The error for a layer on which no output depends."""
    want = "a layer that the engine would have"
    return UnsupportedError(f"layer '{layer}'", "no output depends on it", want, "Leave it out of the model (models/).")


def _module_path(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2].split("@")[0] if len(scopes) > 1 else ""  # a second call of a module is "path@1"


def _qweight_owner(node: ir.Node) -> str:
    qweight = node.inputs[1] if node.op_type in OPS else None
    name = qweight.name if qweight is not None and qweight.is_initializer() else None
    return (name or "").removesuffix("qweight").rstrip(".")
