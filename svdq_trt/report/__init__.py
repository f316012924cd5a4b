"""What quantization did to a model, for people: ``svdq-trt report``."""

from __future__ import annotations

from svdq_trt.report.write import write_report

__all__ = ["write_report"]
