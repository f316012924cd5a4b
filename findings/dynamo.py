"""What the findings about torch's ONNX exporter share."""

import logging
from collections.abc import Callable
from typing import Any

import onnx
import torch


def export(function: Callable[..., Any], *inputs: torch.Tensor) -> onnx.ModelProto:
    """The ONNX file (opset 23, dynamo exporter) of a module that calls `function`."""

    class Call(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return function(*tensors)

    logging.disable(logging.WARNING)
    program = torch.onnx.export(Call().eval(), inputs, dynamo=True, opset_version=23, verbose=False)
    return program.model_proto


def complaint(model: onnx.ModelProto) -> str:
    """What onnx.checker's full check says against it; empty: nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return str(error).strip()
    return ""
