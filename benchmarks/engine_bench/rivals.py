"""Job: the model in torch as its users speed it up: diffusers' own module under torch.compile, in 16 bit or fp8."""

from __future__ import annotations

import sys
from typing import Any

import torch

from engine_bench.measure import CLOCK, time_ms
from engine_bench.model import inputs_of
from svdq_trt.bench.compiled import TorchContender
from svdq_trt.models import get_model


def rival(job: dict[str, Any]) -> dict[str, Any]:
    """Time the compiled module, as `measure.engine`. job: model, sizes, fp8, repeat."""
    spec = get_model(job["model"])
    sys.stdin.readline()
    inputs = dict(zip((io.name for io in spec.inputs), inputs_of(spec, job["sizes"], "cuda"), strict=True))
    module = TorchContender(spec, "fp8" if job["fp8"] else "16bit", lambda: inputs, CLOCK)
    made = module.prepare()
    return {
        "latency_ms": time_ms(module.call, job["repeat"]),
        "memory_bytes": made.memory_bytes,
        "peak_bytes": made.facts["peak_bytes"],
        "graph": made.facts["graph"],
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
