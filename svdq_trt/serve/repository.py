"""Writing a model into a Triton model repository: to a temporary folder, which is then put in place whole.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/...         the file that the backend opens, and those that it needs
    REPOSITORY/NAME/2/...         another version, if one was asked for: one configuration for all

Plans are hard links where the file system allows: they cost no space, and stay as they are when the engine folder is
built again, because a build replaces files and never writes into them. ONNX files are copies. A server that polls
sees the temporary folder (".NAME-...") for a moment and logs that it is no model: to be renamed, it must be on the
repository's file system.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.manifest import Manifest, Tensor
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.files import link_or_copy, refuse_link
from svdq_trt.serve import config as configs
from svdq_trt.serve.config import Serving
from svdq_trt.serve.variants import Contents, contents, largest_request, server_lines

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Written:
    """A model that Triton can load.

    Attributes:
        folder: REPOSITORY/NAME. commands: (when, command) that start a server with it.
        config: the message in its config.pbtxt. largest_bytes: bytes of inputs and outputs in the largest request.
    """

    folder: Path
    commands: list[tuple[str, str]]
    config: Any
    largest_bytes: int


def write_model(engine: Path, repository: Path, serving: Serving) -> Written:
    """Write the model `serving.name` of an engine folder into `repository`, replacing an earlier one of ours.

    With `serving.version` only that version is written, beside others that have the same configuration.

    Raises:
        UsageError: a name that Triton would not take, or options that do not go together.
        ArtifactError: the engine folder is incomplete or damaged; or the repository has a model of that name that
            svdq-trt did not write, or with versions that this one cannot stand beside.
        UnsupportedError: see `variants.contents`; or tritonclient is missing.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", serving.name):
        raise UsageError("--name", f"'{serving.name}'", "letters, digits, '_', '-' and '.'")
    what = contents(engine, serving)
    manifest = _as_served(manifests.read(engine), what.dtypes)
    message = configs.model_config(manifest, serving, what.main, what.parameters)
    folder = repository.resolve() / serving.name
    _check_ours(folder, serving.version)
    version = str(serving.version or 1)
    beside = serving.version is not None and folder.exists()
    if beside:
        _check_same(folder / CONFIG, message)
    repository.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{serving.name}-", dir=repository))
    try:
        aside.chmod(0o755)
        _fill(aside / version, what)
        if beside:
            _put_in_place(aside / version, folder / version, aside / "old")
        else:
            (aside / CONFIG).write_text(configs.to_text(message))
            _put_in_place(aside, folder, aside.with_name(f"{aside.name}-old"))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    commands = server_lines(engine, serving, version, folder.parent)
    return Written(folder, commands, message, largest_request(engine, serving))


def _as_served(manifest: Manifest, dtypes: dict[str, str]) -> Manifest:
    def served(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, dtype=dtypes.get(t.dtype, t.dtype)) for t in tensors)

    return replace(manifest, inputs=served(manifest.inputs), outputs=served(manifest.outputs))


def _check_ours(folder: Path, version: int | None) -> None:
    """Check that what may be replaced is ours: version 1 alone, or with `version` any versions."""
    refuse_link(folder)
    if not folder.exists():
        return
    config = folder / CONFIG
    names = sorted(p.name for p in folder.iterdir() if p.name != CONFIG) if folder.is_dir() else []
    others = [name for name in names if name != "1" and (version is None or not name.isdecimal())]
    if others or not config.is_file() or configs.MARK not in config.read_text(errors="replace"):
        got = f"holds {', '.join(others)}" if others else "a model that svdq-trt did not write"
        fix = "Choose another --name, add a version with --model-version, or remove it."
        raise ArtifactError(str(folder), got, "a free name", fix)
    if version is not None:
        refuse_link(folder / str(version))


def _check_same(path: Path, message: Any) -> None:
    """Check that the versions that are there have the configuration of the new one: Triton has one for all."""
    there = configs.from_text(path.read_text(errors="replace"), str(path))
    other = configs.differences(there, message)
    if other:
        fix = "Write it with the same options, or choose another --name."
        raise ArtifactError(
            str(path), f"another {', '.join(other)} than this version's", "one configuration for all", fix
        )


def _fill(folder: Path, what: Contents) -> None:
    folder.mkdir()
    for name, source in what.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source, folder / name)
    for name, text in what.texts.items():
        with (folder / name).open("x") as file:  # never into one of the engine's files, which may be a hard link
            file.write(text)


def _put_in_place(aside: Path, folder: Path, old: Path) -> None:
    """Swap folders by two renames: a server that looks in between finds no model, never half of one."""
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
