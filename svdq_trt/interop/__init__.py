"""Quantized checkpoints of other tools: into our artifact and back."""

from __future__ import annotations

from svdq_trt.interop.container import digest
from svdq_trt.interop.convert import Description, describe, export_checkpoint, import_checkpoint

__all__ = ["Description", "describe", "digest", "export_checkpoint", "import_checkpoint"]
