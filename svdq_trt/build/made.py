"""The results of stages: of one format's, and of a part's beside the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field

from svdq_trt.build.execute import Costs
from svdq_trt.build.stage import File
from svdq_trt.build.stages.allocate import Allocated
from svdq_trt.build.stages.compare import Compared
from svdq_trt.build.stages.export import Exported
from svdq_trt.build.stages.export_part import PartExported
from svdq_trt.build.stages.lora import LorasApplied
from svdq_trt.build.stages.quantize import Quantized
from svdq_trt.build.stages.run_onnx import Ran


@dataclass
class Made:
    """The results of one format's stages, and their costs.

    Attributes:
        artifact: the quantized model without LoRAs, by its key.
        graph: model.onnx, by its key. checked_on: what `compared` ran on.
        collected: digest of the calibration that `quantized` was made from; empty where another build has replaced it.
    """

    artifact: File
    quantized: Quantized
    costs: Costs
    allocated: Allocated | None = None
    loras: LorasApplied | None = None
    graph: File = field(init=False)
    exported: Exported = field(init=False)
    checked_on: Ran | None = None
    compared: Compared | None = None
    collected: str = ""


@dataclass(frozen=True)
class PartMade:
    """A part's graph by its stage's key, and what it cost."""

    key: str
    exported: PartExported
    costs: Costs
