"""PEFT's configuration of an adapter: what it says about a layer's strength, and whether all of it is understood.

A field that could change what the factors mean, and is not understood here, is an error: its default would silently
take its place. Read against peft/tuners/lora/config.py and layer.py (update_layer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.lora.peft_pattern import UnknownPatternError, matches

#: fields that steer training, choose layers (the file has what was chosen), or only matter together with others
_NEUTRAL = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("corda_config", "eva_config", "exclude_modules", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
    *("target_modules", "velora_config", "ensure_weight_tying", "rank_dropout", "module_dropout"),
    *("rank_dropout_scale", "decompose_both", "decompose_factor", "use_effective_conv2d"),  # sizes of factors show
    *("oft_block_size", "block_share", "eps"),  # eps is coft's, which is not known
    *("bias", "lora_bias", "modules_to_save"),  # their tensors are in the file, by names of their own
    "fan_in_fan_out",  # PEFT itself ignores it for a Linear
}
_UNDERSTOOD = {"r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
_UNDERSTOOD |= {"use_cayley_neumann", "num_cayley_neumann_terms"}
_UNDERSTOOD |= {"init_lora_weights", "init_weights", "peft_type"}
#: initial values of factors that leave the model's own weights as they are; others take a part of those out
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: peft_type -> (the field with alpha, its default, the default of r), as in PEFT's classes
_KINDS = {"LORA": ("lora_alpha", 8, 8), "LOHA": ("alpha", 8, 8), "LOKR": ("alpha", 8, 8)}
_TERMS_MAX = 64  # of a series; PEFT's default is 5
_NUMBER_MAX = 1e30  # an integer of JSON may have more digits than a float can
_OFT = "OFT"
_FIX = "Save the LoRA as a plain one, or with '.alpha' tensors."


@dataclass(frozen=True)
class PeftConfig:
    """The configuration of one component's adapter.

    Attributes:
        where: the file, and the part of it that has the configuration. fields: as stored, not to be trusted.
    """

    where: str
    fields: Mapping[str, Any]

    def check(self) -> None:
        """Raise ArtifactError for anything that is not understood."""
        kind = self.fields.get("peft_type") or "LORA"
        if not isinstance(kind, str) or kind not in (*_KINDS, _OFT):
            raise ArtifactError(self.where, f"peft_type {kind!r:.40}", f"one of {', '.join((*_KINDS, _OFT))}")
        for name in ("init_lora_weights", "init_weights"):
            start = self.fields.get(name)
            if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in _PLAIN_STARTS):
                raise ArtifactError(
                    self.where,
                    f"{name} {start!r:.40}, factors that take the place of a part of the model's own weights",
                    "factors that are added to them",
                    "Save the adapter with PEFT's path_initial_model_for_weight_conversion.",
                )
        for name, value in self.fields.items():
            if name not in _NEUTRAL | _UNDERSTOOD and value not in (None, False, [], {}, ""):
                raise ArtifactError(self.where, f"{name!r:.40}, which svdq-trt does not know", "a plain LoRA", _FIX)

    @property
    def uses_dora(self) -> bool:
        """The adapter is a DoRA: every layer of it has a magnitude."""
        return self.fields.get("use_dora") is True

    @property
    def saves_whole(self) -> bool:
        """The adapter has whole layers besides its factors."""
        return bool(self.fields.get("modules_to_save")) or self.fields.get("bias") not in (None, "none")

    def rotation_terms(self) -> int | None:
        """Terms of the series of an OFT's rotations; None: Cayley's transform itself.

        Raises:
            ArtifactError: another adapter's configuration, or one that does not say which.
        """
        series, terms = (self.fields.get(name) for name in ("use_cayley_neumann", "num_cayley_neumann_terms"))
        if self.fields.get("peft_type") != _OFT or not isinstance(series, bool):
            got = f"use_cayley_neumann {series!r:.40} of peft_type {self.fields.get('peft_type')!r:.40}"
            raise ArtifactError(self.where, got, "true or false, of OFT")
        if not series:
            return None
        if isinstance(terms, bool) or not isinstance(terms, int) or not 0 < terms <= _TERMS_MAX:
            raise ArtifactError(self.where, f"num_cayley_neumann_terms {terms!r:.40}", f"1 to {_TERMS_MAX}")
        return terms

    def scale(self, layer: str, rank: int | None) -> float:
        """The factor of up @ down: alpha / r, or alpha / sqrt(r).

        Args:
            layer: its name in the model that PEFT wrapped. rank: r of the file's factors; None where they have none.

        Raises:
            ArtifactError: a field of another type, a pattern that is not understood, another rank than the file's.
        """
        kind = self.fields.get("peft_type") or "LORA"
        if kind not in _KINDS:
            raise ArtifactError(f"{self.where}: '{layer}'", f"factors in a configuration of {kind}", "one adapter")
        alpha_name, alpha_default, rank_default = _KINDS[kind]
        stated = self._number("rank_pattern", layer, self.fields.get("r", rank_default), "r")
        if rank is not None and stated != rank:
            raise ArtifactError(f"{self.where}: '{layer}'", f"rank {stated:g}, and factors of {rank}", "one rank")
        alpha = self._number("alpha_pattern", layer, self.fields.get(alpha_name, alpha_default), alpha_name)
        root = self.fields.get("use_rslora")
        if root not in (True, False, None):
            raise ArtifactError(self.where, f"use_rslora {root!r:.40}", "true or false")
        if stated <= 0:
            raise ArtifactError(f"{self.where}: '{layer}'", f"rank {stated:g}", "a positive number")
        return alpha / (math.sqrt(stated) if root else stated)

    def _number(self, field: str, layer: str, default: object, name: str) -> float:
        patterns = self.fields.get(field)
        if patterns is not None and not isinstance(patterns, dict):
            raise ArtifactError(self.where, f"{field} is a {type(patterns).__name__}", "a JSON object")
        found = default
        for pattern, value in (patterns or {}).items():
            try:
                if matches(pattern, layer):
                    found = value
                    break
            except UnknownPatternError as error:
                got = f"{field} has {pattern!r:.80} with {error}"
                raise ArtifactError(self.where, got, "names, or regular expressions without that", _FIX) from None
        if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < _NUMBER_MAX:
            raise ArtifactError(f"{self.where}: '{layer}'", f"{name} {found!r:.40}", "a finite number")
        return float(found)
