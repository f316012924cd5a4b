"""``--choose DEST``: a link to the faster of engines that differ in their attention alone.

A link, because it appears in one step, whole, and costs no second copy of gigabytes; and the runtime cache stays where
it was measured.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from svdq_trt.artifact.manifest import Manifest
from svdq_trt.artifact.origin import OriginEntry
from svdq_trt.base.errors import ArtifactError

#: what two engines must share, so that speed is all there is to choose by
_SAME = ("model", "arch", "format", "rank", "allocation", "quantized", "kept_16bit", "loras", "lora_slots", "inputs")


def check_alike(engines: Mapping[Path, Manifest]) -> None:
    """Check that the engines are one quantized model.

    Raises:
        ArtifactError: they differ in more than their attention and the TensorRT that built them.
    """
    (first, one), *others = engines.items()
    for folder, data in others:
        for part in _SAME:
            if getattr(data, part) != getattr(one, part):
                raise _unlike(folder, part, first)
        if data.origin is not None and one.origin is not None and _sources(data.origin) != _sources(one.origin):
            raise _unlike(folder, "checkpoint", first)


def _sources(origin: OriginEntry) -> tuple[str, str]:
    """Digests of what an engine's weights are: two imported models of one shape have no other difference."""
    return origin.quantized, origin.weights.digest if origin.weights is not None else ""


def _unlike(folder: Path, part: str, first: Path) -> ArtifactError:
    want = "engines that differ in their attention alone, as --choose goes by speed"
    return ArtifactError(str(folder), f"another {part} than {first}", want, "Leave out --choose.")


def check_place(dest: Path, engines: Sequence[Path]) -> None:
    """Check that `dest` is free, or a link to one of the engines, as an earlier choice left it.

    Raises:
        ArtifactError: something else is there, or it would lie in no folder or inside an engine.
    """
    folder = dest.parent.resolve()
    own = [engine.resolve() for engine in engines]
    if not folder.is_dir():
        raise ArtifactError(str(dest), "no such folder to put it in", "a name in a folder that exists")
    if any(folder.is_relative_to(engine) for engine in own):
        raise ArtifactError(str(dest), "a place inside an engine", "one beside the engines")
    if dest.is_symlink():
        if Path(os.path.realpath(dest)) not in own:  # which, unlike `resolve`, takes a link to itself
            got = f"a link to {dest.readlink()}"
            raise ArtifactError(str(dest), got, "a free name, or a link to one of these engines")
    elif dest.exists():
        raise ArtifactError(str(dest), "something that is no link", "a free name, or a link to one of these engines")


def place(dest: Path, chosen: Path, engines: Sequence[Path]) -> None:
    """Make `dest` a relative link to the folder `chosen`, in one step; nothing but such a link is replaced.

    Raises:
        ArtifactError: as `check_place`; something has appeared there meanwhile, or it is not writable.
    """
    check_place(dest, engines)
    target = os.path.relpath(chosen.resolve(), dest.parent.resolve())
    try:
        if not dest.is_symlink():
            dest.symlink_to(target, target_is_directory=True)  # fails where something has appeared
            return
        new = dest.with_name(f".{dest.name}.{secrets.token_hex(8)}.tmp")
        new.symlink_to(target, target_is_directory=True)
        try:
            new.replace(dest)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(str(dest), f"no link can be made ({error.strerror})", "a writable folder") from error
