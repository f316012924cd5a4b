"""alpha where no tensor holds it: diffusers' metadata in the file, PEFT's adapter_config.json beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import read_json_object

_DIFFUSERS = "lora_adapter_metadata"  # JSON: {"unet.lora_alpha": 16, "unet.alpha_pattern": {...}, ...}
_PEFT = "base_model.model."


class Alphas:
    """The scale alpha / r (or alpha / sqrt(r) with rslora) of each layer, from the trainer's metadata."""

    def __init__(self, path: Path, metadata: Mapping[str, str], names: tuple[str, ...]) -> None:
        self.where = str(path)
        self._configs: dict[str, dict[str, Any]] = {}
        text = metadata.get(_DIFFUSERS)
        if text is not None:
            for key, value in self._object(text).items():
                prefix, _, field = key.partition(".")
                self._configs.setdefault(f"{prefix}.", {})[field] = value
        config = path.with_name("adapter_config.json")
        if any(n.startswith(_PEFT) for n in names) and config.is_file():
            self._configs[_PEFT] = read_json_object(config, "PEFT's adapter configuration")

    def scale(self, layer: str, rank: int, alpha: float | None) -> float:
        """The factor of up @ down.

        Args:
            layer: as spelled in the file. rank: r. alpha: value of the layer's own tensor, None without one.

        Raises:
            ArtifactError: an alpha that is not a finite number.
        """
        config: dict[str, Any] = {}
        for prefix, candidate in self._configs.items():
            if layer.startswith(prefix):
                config, layer = candidate, layer.removeprefix(prefix)
        if alpha is None:
            given = self._pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", rank))
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise ArtifactError(f"{self.where}: '{layer}'", f"alpha {given!r}", "a finite number")
            alpha = float(given)
        if not math.isfinite(alpha):
            raise ArtifactError(f"{self.where}: '{layer}'", f"alpha {alpha}", "a finite number")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)

    @staticmethod
    def _pattern(patterns: object, layer: str, default: object) -> object:
        """Look a layer up in PEFT's patterns: regular expressions, unsafe to run, but names in practice."""
        if isinstance(patterns, dict):
            for name, value in patterns.items():
                if layer == name or layer.endswith(f".{name}"):
                    return value
        return default

    def _object(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(self.where, f"metadata '{_DIFFUSERS}' is not valid JSON", "JSON") from error
        if not isinstance(value, dict):
            raise ArtifactError(self.where, f"metadata '{_DIFFUSERS}' is a {type(value).__name__}", "a JSON object")
        return value
