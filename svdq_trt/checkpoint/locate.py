"""Finding the files that ``--checkpoint`` names: a diffusers folder, one .safetensors file, or a hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from svdq_trt.base.errors import ArtifactError, SvdqError, UsageError
from svdq_trt.base.files import read_json_object
from svdq_trt.models import ModelSpec

_STEM = "diffusion_pytorch_model"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BOTH = "Give a local copy with --checkpoint, or use --random-weights SEED."


@dataclass(frozen=True)
class Source:
    """The location of a model's weights.

    Attributes:
        files: the safetensors files, at least one.
        config: path of config.json, or None for a single file.
        index: tensor name -> file name, of a sharded checkpoint; None otherwise.
    """

    files: tuple[Path, ...]
    config: Path | None = None
    index: dict[str, str] | None = None


def locate(spec: ModelSpec, checkpoint: str | None) -> Source:
    """Resolve `checkpoint`; None means the model's own hub id.

    Raises:
        UsageError: nothing was given and the model is published nowhere.
        ArtifactError: the path or the hub id leads to no safetensors weights.
    """
    if checkpoint is None:
        if not spec.hub_id:
            raise UsageError(f"model '{spec.name}'", "no weights given", "--checkpoint PATH or --random-weights SEED")
        return _in_folder(spec, _from_hub(spec, spec.hub_id))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return _in_folder(spec, path)
    if path.is_file():
        return _single_file(path)
    looks_local = path.suffix in (".safetensors", *_PICKLES) or checkpoint.startswith((".", "/", "~"))
    if looks_local or not _HUB_ID.fullmatch(checkpoint):
        raise ArtifactError(
            "--checkpoint",
            f"'{checkpoint}' does not exist",
            "a diffusers folder, a .safetensors file or a hub id",
            BOTH,
        )
    return _in_folder(spec, _from_hub(spec, checkpoint))


def _single_file(path: Path) -> Source:
    if path.suffix in _PICKLES:
        raise ArtifactError(
            str(path),
            "a pickle file, which can run code when read",
            "safetensors",
            "Convert it to safetensors first.",
        )
    if path.suffix != ".safetensors":
        raise ArtifactError(str(path), f"suffix '{path.suffix}'", "a .safetensors file or a diffusers folder")
    return Source((path,))


def _in_folder(spec: ModelSpec, folder: Path) -> Source:
    """Find the model's files in a pipeline folder (its subfolder) or in the model's own folder."""
    for root in (folder / spec.subfolder, folder):
        config = root / "config.json"
        if config.is_file():
            return _with_config(spec, root, config)
    where = f"{folder.name}/{spec.subfolder}/config.json or {folder.name}/config.json"
    raise ArtifactError(str(folder), "no config.json", where, "Point --checkpoint at a diffusers folder.")


def _with_config(spec: ModelSpec, root: Path, config: Path) -> Source:
    for variant in (spec.variant, ""):
        dot = f".{variant}" if variant else ""
        single = root / f"{_STEM}{dot}.safetensors"
        if single.is_file():
            return Source((single,), config)
        for name in (f"{_STEM}.safetensors.index{dot}.json", f"{_STEM}{dot}.safetensors.index.json"):
            if (root / name).is_file():
                return _sharded(root, root / name, config)
    if pickles := sorted(p.name for p in root.iterdir() if p.suffix in _PICKLES):
        raise ArtifactError(
            str(root / pickles[0]),
            "only pickle files here",
            "safetensors",
            "Download the safetensors variant.",
        )
    raise ArtifactError(str(root), "no weights", f"{_STEM}.safetensors or its sharded index")


def _sharded(root: Path, index_path: Path, config: Path) -> Source:
    index = read_json_object(index_path, "a sharded checkpoint's index").get("weight_map")
    ok = isinstance(index, dict) and index and all(isinstance(v, str) for v in index.values())
    if not ok or index is None:
        raise ArtifactError(str(index_path), "no usable 'weight_map'", "a map from tensor to file name")
    for name in sorted(set(index.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ArtifactError(str(index_path), f"file name '{name}'", "a .safetensors file in the same folder")
        if not (root / name).is_file():
            raise ArtifactError(str(root / name), "missing shard", f"the file named by {index_path.name}")
    return Source(tuple(root / n for n in sorted(set(index.values()))), config, index)


def _from_hub(spec: ModelSpec, hub_id: str) -> Path:
    """Folder of the hub's snapshot: the local cache first, then a download of this model's files only."""
    from huggingface_hub import snapshot_download

    # Unanchored patterns cover both a pipeline's subfolder and a repository that is the model itself.
    names = [f"{_STEM}.{spec.variant}.safetensors", f"{_STEM}*.safetensors.index*.json", "config.json"]
    wanted = [f"{p}{n}" for n in names for p in (f"{spec.subfolder}/", "")]
    try:
        cached = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
        _in_folder(spec, cached)
        return cached
    except (OSError, ValueError, SvdqError):
        pass  # not in the cache, or only a part of it
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted))
        if _is_complete(spec, folder):
            return folder
        plain = [f"{p}{_STEM}*.safetensors" for p in (f"{spec.subfolder}/", "")]  # no such variant: use the full one
        return Path(snapshot_download(hub_id, allow_patterns=[*wanted, *plain]))
    except Exception as error:  # the hub's client raises its own, requests', httpx's and OS errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ArtifactError(
            f"hub id '{hub_id}'",
            f"not in the local cache and not downloadable ({reason})",
            "its weights",
            BOTH,
        ) from error


def _is_complete(spec: ModelSpec, folder: Path) -> bool:
    try:
        _in_folder(spec, folder)
    except SvdqError:
        return False
    return True
