"""Original single-file tensor names (``model.diffusion_model.*``) as diffusers names them."""

from __future__ import annotations

from collections.abc import Collection

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.needs import need
from svdq_trt.models import ModelSpec

LDM_PREFIX = "model.diffusion_model."


def diffusers_names(spec: ModelSpec, names: Collection[str], where: str) -> dict[str, str]:
    """Map diffusers name -> name in the file.

    diffusers' own converter does the renaming. It moves values without looking at them, so it is given the
    names themselves as values: no tensor is read.

    Raises:
        ArtifactError: `where` doesn't convert; it is another model's.
    """
    if not any(n.startswith(LDM_PREFIX) for n in names):
        return {n: n for n in names}
    import diffusers  # noqa: F401 - for build/code.py, as in models/spec.py

    convert = need("diffusers", "diffusers.loaders.single_file_utils", "convert_ldm_unet_checkpoint")

    try:
        names_as_values = {n: n for n in names}
        converted: dict[str, str | None] = convert(names_as_values, dict(spec.config))
    except (KeyError, IndexError, ValueError) as error:
        raise ArtifactError(
            where, f"original-format keys that don't convert ({error})", f"a checkpoint of {spec.title}"
        ) from error
    return {new: LDM_PREFIX + old.removeprefix(LDM_PREFIX) for new, old in converted.items() if old is not None}
