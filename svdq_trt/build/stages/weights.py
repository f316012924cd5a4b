"""Inputs of several stages: the model's 16-bit weights, and LoRA files."""

from __future__ import annotations

from dataclasses import dataclass, field

from svdq_trt.build.stage import UNKEYED, File


@dataclass(frozen=True)
class Weights:
    """A model and the source of its weights, which count by their digest (checkpoint/digest.py)."""

    model: str
    digest: str
    checkpoint: str | None = field(default=None, kw_only=True, metadata=UNKEYED)
    random_weights: int | None = field(default=None, kw_only=True, metadata=UNKEYED)

    def imports(self) -> None:
        """Import the model's class."""
        from svdq_trt.models import get_model

        get_model(self.model).model_class()


@dataclass(frozen=True)
class LoraAt:
    """A LoRA file at a strength. config: PEFT's configuration in its folder, which may state how strong it is."""

    file: File
    strength: float
    config: File | None = None
