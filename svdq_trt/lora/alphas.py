"""The strength of a layer: wherever a file, or what lies beside it, states alpha.

A default (alpha = r) counts only where nothing states another. What is stated and cannot be understood, or twice in
different ways, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import parse_json, read_json_object
from svdq_trt.lora.names import TEXT_ENCODER, Target
from svdq_trt.lora.peft_config import PeftConfig

_DIFFUSERS = "lora_adapter_metadata"  # JSON: {"unet.lora_alpha": 16, ...}; by save_lora_adapter without "unet."
_PEFT = "base_model.model."
CONFIG_FILE = "adapter_config.json"
#: text entries of a header that state one alpha for all layers: kohya's trainer's, and what people add by hand
_HEADER = re.compile(r"(ss_network_|network_|lora_)?alpha")


def config_beside(path: Path) -> Path | None:
    """PEFT's adapter_config.json in the folder of a LoRA file; a part of the LoRA where it is there."""
    config = path.with_name(CONFIG_FILE)
    return config if config.is_file() else None


class Alphas:
    """The scale of each layer of one file: alpha / r, or alpha / sqrt(r) with rslora.

    Args:
        path: the file. metadata: its header's text entries. names: of its tensors.

    Raises:
        ArtifactError: metadata that is no JSON object, or a configuration that is not understood.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], names: Sequence[str]) -> None:
        self.where = str(path)
        self._header = {name: text for name, text in metadata.items() if _HEADER.fullmatch(name)}
        self._has_metadata = bool(metadata.get(_DIFFUSERS))
        self._inside = self._configs(metadata[_DIFFUSERS]) if self._has_metadata else {}
        beside = config_beside(path)
        self._beside: PeftConfig | None = None
        if beside is not None:
            self._beside = PeftConfig(str(beside), read_json_object(beside, "PEFT's adapter configuration"))
            if any(name.startswith(_PEFT) for name in names):
                self._beside.check()

    def scale(self, layer: str, targets: Sequence[Target], rank: int | None, alpha: float | None) -> float:
        """The factor of up @ down.

        Args:
            layer: as spelled in the file. targets: what it stands for.
            rank: r of the factors; None where they have none, and a configuration states it.
            alpha: value of the layer's own tensor, None without one.

        Raises:
            ArtifactError: an alpha that is no finite number; none where the file's writer always states one; two.
        """
        where = f"{self.where}: '{layer}'"
        own = None if alpha is None or rank is None else alpha / rank
        if own is not None and not (own and math.isfinite(own)):
            # 0: kohya's trainer reads the rank instead, diffusers nothing
            raise ArtifactError(where, f"alpha {alpha}", "a finite number other than 0")
        stated = self._stated(layer, targets, rank, own is not None)
        if own is not None and stated is not None and not math.isclose(own, stated, rel_tol=1e-3):
            raise ArtifactError(
                where, f"strength {own:g} by its alpha, {stated:g} by its configuration", "one strength"
            )
        found = own if own is not None else stated
        if found is not None:
            return found
        for name, text in self._header.items():
            if _number(text) != rank:
                raise ArtifactError(where, f"no alpha, and {name} {text!r:.40} in the header", "'.alpha' tensors")
        return 1.0

    def saves_whole(self, layer: str) -> bool:
        """Whether the layer's configuration says that the file has whole weights besides factors."""
        config = self.config_of(layer)
        return config is not None and config.saves_whole

    def rotation_terms(self, layer: str) -> int | None:
        """How PEFT makes a rotation of an OFT's numbers: see PeftConfig. Raises ArtifactError without a statement."""
        config = self.config_of(layer)
        if config is None:
            raise ArtifactError(f"{self.where}: '{layer}'", "PEFT's OFT without its configuration", CONFIG_FILE)
        return config.rotation_terms()

    def require_magnitude(self, layer: str, there: bool) -> None:
        """Raise ArtifactError where a DoRA's magnitude is stated and missing."""
        config = self.config_of(layer)
        if config is not None and config.uses_dora and not there:
            raise ArtifactError(f"{self.where}: '{layer}'", "use_dora without a magnitude", "lora_magnitude_vector")

    def _stated(self, layer: str, targets: Sequence[Target], rank: int | None, has_alpha: bool) -> float | None:
        where = f"{self.where}: '{layer}'"
        config = self.config_of(layer)
        if config is not None:
            scales = {config.scale(module, rank) for module in self._modules(layer, targets)}
            if len(scales) > 1:
                raise ArtifactError(where, f"{len(scales)} strengths by its configuration", "one strength")
            return scales.pop()
        if layer.startswith(_PEFT):
            plain = any(layer.endswith(f".{t.layer}") for t in targets)
            if plain and not has_alpha:  # other names: fal's, whose files have no configuration and scale 1
                raise ArtifactError(where, f"no {CONFIG_FILE} beside it, which has the strength", "both files")
        elif has_alpha:
            return None
        elif self._has_metadata:
            raise ArtifactError(where, f"no part of the header's {_DIFFUSERS} is about it", "its lora_alpha")
        elif self._beside is not None:
            self._require_one(layer, targets, rank)
        return None

    def _require_one(self, layer: str, targets: Sequence[Target], rank: int | None) -> None:
        """A configuration beside a file that is not PEFT's by its names: nobody reads it, so it must agree."""
        assert self._beside is not None
        try:
            self._beside.check()
            stated = [self._beside.scale(module, rank) for module in self._modules(layer, targets)]
        except ArtifactError as error:
            got = f"no alpha, and {CONFIG_FILE} beside it, which does not fit ({error.got})"
        else:
            other = [scale for scale in stated if not math.isclose(scale, 1.0)]
            if not other:
                return
            got = f"no alpha, and {CONFIG_FILE} beside it with strength {other[0]:g}"
        fix = "Add '.alpha' tensors, or move the file away from that configuration."
        raise ArtifactError(f"{self.where}: '{layer}'", got, "one strength", fix)

    def config_of(self, layer: str) -> PeftConfig | None:
        """PEFT's configuration that counts for a layer."""
        if layer.startswith(_PEFT):
            return self._beside
        fitting = [config for prefix, config in self._inside.items() if prefix and layer.startswith(f"{prefix}.")]
        if not fitting:  # names that are not diffusers', or without a component: of the one there is
            fitting = list(self._inside.values())
        if len(fitting) > 1:
            raise ArtifactError(f"{self.where}: '{layer}'", f"{len(fitting)} parts of {_DIFFUSERS}", "one about it")
        return fitting[0] if fitting else None

    @staticmethod
    def _modules(layer: str, targets: Sequence[Target]) -> list[str]:
        """The layer's names in the model that PEFT wrapped."""
        return [layer.removeprefix(_PEFT)] if layer.startswith(_PEFT) else [t.layer for t in targets]

    def _configs(self, text: str) -> dict[str, PeftConfig]:
        """Component -> its configuration, "" where the fields have no component; without text encoders'."""
        try:
            value = parse_json(text)
        except ValueError as error:
            raise ArtifactError(self.where, f"metadata '{_DIFFUSERS}' is not valid JSON", "JSON") from error
        if not isinstance(value, dict):
            raise ArtifactError(self.where, f"metadata '{_DIFFUSERS}' is a {type(value).__name__}", "a JSON object")
        fields: dict[str, dict[str, Any]] = {}
        for key, item in value.items():
            component, _, field = key.rpartition(".")
            if not TEXT_ENCODER.fullmatch(f"{component}."):
                fields.setdefault(component, {})[field] = item
        configs = {c: PeftConfig(f"{self.where}, {_DIFFUSERS}", own) for c, own in fields.items()}
        for config in configs.values():
            config.check()
        return configs


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
