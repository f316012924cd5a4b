"""Fold small constants and drop what nothing reads, keeping every parameter under its own name."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

FOLD_LIMIT = 4096  # limits on inputs and outputs: shapes, scalars, small tables

#: The default rules that a traced diffusion model has a use for. Not among them: slice_split, whose
#: search is quadratic (33 s on an SDXL UNet, no match), and cast_cast: f32 -> f16 -> f32 is a rounding.
_RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.reshape_reshape_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
)


def simplify(model: ir.Model, parameters: Set[str]) -> None:
    """Simplify like torch.onnx's `optimize`, with two exceptions.

    It does not merge equal parameters: two layers with equal biases would read one tensor, and a refit by
    name would change both. It folds nothing that reads one of `parameters`, since the folded tensor (a
    transposed weight) would lose its state-dict name; TensorRT folds those itself, at no extra memory or time.
    """

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    def fold() -> None:
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLD_LIMIT,
            output_size_limit=FOLD_LIMIT,
            should_fold=should_fold,
        )
        passes.RemoveUnusedNodesPass()(model)

    passes.InlinePass()(model)
    fold()
    RewriteRuleSet(_RULES).apply_to_model(model)
    fold()  # folds what the rules have made constant
    passes.RemoveUnusedFunctionsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _merge_equal_constants(model.graph, parameters)  # otherwise equal nodes would not look equal to the next pass
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _merge_equal_constants(graph: ir.Graph, parameters: Set[str]) -> None:
    """Let readers of equal constants read the first one; the exporter writes a new constant for each [-1]."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if name in parameters or tensor is None or tensor.size > FOLD_LIMIT or value.is_graph_output():
            continue
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            graph.initializers.pop(name)
