"""What a checkpoint says of its own quantization: the name in a `quantization_config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError, UnsupportedError

UNNAMED = "a method that it does not name"
#: keys of vLLM-Omni's quantization_config.json, which has no method's name where it is a file of its own
_OF_VLLM_OMNI = {"rank", "precision"}
#: method, as `method_of` spells it -> what such a checkpoint is, of those that could be taken for another
KNOWN = {
    "svdquant": "SVDQuant in rows, as vLLM-Omni writes it: nunchaku's names in another order",
    "nunchaku_lite": "Nunchaku Lite of diffusers",
    "bitsandbytes": "bitsandbytes of diffusers",
}


def method_of(quantization: Any, where: str) -> str:
    """The method that a `quantization_config` names, or UNNAMED; "" where there is none (absent or null).

    Raises:
        ArtifactError: not an object.
    """
    if quantization is None:
        return ""
    if not isinstance(quantization, Mapping):
        raise ArtifactError(where, f"a JSON {type(quantization).__name__}", "a JSON object")
    keys = ("quant_method", "quant_algo", "format", "quant_type")
    named = next((str(quantization[key]) for key in keys if quantization.get(key)), "")
    return named or ("svdquant" if quantization.keys() >= _OF_VLLM_OMNI else UNNAMED)


def described(method: str) -> str:
    """The method for people."""
    if method == UNNAMED:
        return UNNAMED
    known = KNOWN.get(method)
    return f"'{method:.60}'" + (f" ({known})" if known else "")


def refuse_quantized(config: Mapping[str, Any], path: Path) -> None:
    """Raise UnsupportedError for the config of a checkpoint that is not in plain floats, naming its method."""
    where = f"{path}: quantization_config"
    if method := method_of(config.get("quantization_config"), where):
        raise UnsupportedError(
            where, f"quantized by {described(method)}", "an unquantized checkpoint", "Import others with --quantized."
        )
