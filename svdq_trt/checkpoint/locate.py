"""Finding the files that ``--checkpoint`` names: a diffusers folder, one .safetensors file, or a hub id.

Where a folder has several files for one model, the one that is read is diffusers' own choice: that of
``from_pretrained(folder, subfolder=...)`` without a variant, and of ``variant="fp16"`` where only that is there
(diffusers/models/modeling_utils.py). What lies there unread is told in `Source.notes`. A hub id is another matter: of
it the spec's variant alone is downloaded, and read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdq_trt.base.errors import ArtifactError, SvdqError, UsageError, first_line
from svdq_trt.base.files import read_json_object
from svdq_trt.models import ModelSpec

#: beginning of the names of the files that a library writes weights to
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
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
        notes: for the user: where they come from, if there was a choice. commit: of a hub id's snapshot; "" otherwise.
    """

    files: tuple[Path, ...]
    config: Path | None = None
    index: dict[str, str] | None = None
    notes: tuple[str, ...] = ()
    commit: str = ""


def locate(spec: ModelSpec, checkpoint: str | None) -> Source:
    """Resolve `checkpoint`; None means the model's own hub id.

    Raises:
        UsageError: nothing was given and the model is published nowhere.
        ArtifactError: the path or the hub id leads to no safetensors weights.
    """
    if checkpoint is None:
        if not spec.hub_id:
            raise UsageError(f"model '{spec.name}'", "no weights given", "--checkpoint PATH or --random-weights SEED")
        return _of_hub(spec, spec.hub_id)
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
    return _of_hub(spec, checkpoint)


def _of_hub(spec: ModelSpec, hub_id: str) -> Source:
    folder, cached = _from_hub(spec, hub_id)
    source, commit = _in_folder(spec, folder, from_hub=True), folder.name if folder.parent.name == "snapshots" else ""
    note = f"{hub_id}: weights from the local cache, {f'commit {commit}' if commit else folder}; the hub was not asked"
    return replace(source, notes=((note,) if cached else ()) + source.notes, commit=commit)


def locate_component(root: Path, library: str, variant: str) -> Source:
    """Find the weights in the folder of a pipeline's component.

    Args:
        library: that of its class, one of STEMS. variant: one to read where it alone is there.

    Raises:
        ArtifactError: no config.json, or no safetensors weights.
    """
    if not (root / "config.json").is_file():
        raise ArtifactError(str(root), "no config.json", "the folder of a pipeline's component")
    return _with_config(root, root / "config.json", library, variant)


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


def _in_folder(spec: ModelSpec, folder: Path, from_hub: bool = False) -> Source:
    """Find the model's files in a pipeline folder (its subfolder) or in the model's own folder."""
    for root in (folder / spec.subfolder, folder):
        config = root / "config.json"
        if config.is_file():
            return _with_config(root, config, spec.library, spec.variant, from_hub)
    where = f"{folder.name}/{spec.subfolder}/config.json or {folder.name}/config.json"
    raise ArtifactError(str(folder), "no config.json", where, "Point --checkpoint at a diffusers folder.")


def _with_config(root: Path, config: Path, library: str, variant: str, from_hub: bool = False) -> Source:
    stem, variants = STEMS[library], ("", variant) if variant else ("",)
    looked_for = [name for one in (variants[::-1] if from_hub else variants) for name in _names(stem, one)]
    found = next((root / name for name in looked_for if (root / name).is_file()), None)
    if found is not None:
        others = _others(root, found.name, stem)
        source = Source((found,), config) if found.suffix == ".safetensors" else _sharded(root, found, config, others)
        why = f"the {variant} variant" if from_hub else "as diffusers' from_pretrained does"
        return replace(source, notes=(f"{found}: read, {why}; not read: {', '.join(others)}",) if others else ())
    if pickles := sorted(p.name for p in root.iterdir() if p.suffix in _PICKLES):
        raise ArtifactError(
            str(root / pickles[0]),
            "only pickle files here",
            "safetensors",
            "Download the safetensors variant.",
        )
    raise ArtifactError(str(root), "no weights", f"{stem}.safetensors or its sharded index")


def _names(stem: str, variant: str) -> tuple[str, ...]:
    """Names of a variant's weights in diffusers' order: an index of shards before a single file; "": the plain ones."""
    if not variant:
        return f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    indices = f"safetensors.index.{variant}.json", f"safetensors.{variant}.index.json"
    return (*(f"{stem}.{name}" for name in (*indices, f"{variant}.safetensors.index.json", f"{variant}.safetensors")),)


def _others(root: Path, taken: str, stem: str) -> list[str]:
    """Names of the folder's other weights: single files and indices, without the shards that these name."""
    names = [p.name for p in root.glob(f"{stem}*") if p.name.endswith((".safetensors", ".json"))]
    return sorted(n for n in names if n != taken and not re.search(r"-\d{5}-of-\d{5}", n))


def _sharded(root: Path, index_path: Path, config: Path, others: Sequence[str]) -> Source:
    index = read_json_object(index_path, "a sharded checkpoint's index").get("weight_map")
    ok = isinstance(index, dict) and index and all(isinstance(v, str) for v in index.values())
    if not ok or index is None:
        raise ArtifactError(str(index_path), "no usable 'weight_map'", "a map from tensor to file name")
    for name in sorted(set(index.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ArtifactError(str(index_path), f"file name '{name}'", "a .safetensors file in the same folder")
        if not (root / name).is_file():
            fix = f"Or remove {index_path.name}, so that another file is read: {', '.join(others)}." if others else ""
            raise ArtifactError(str(root / name), "missing shard", f"the file named by {index_path.name}", fix)
    return Source(tuple(root / n for n in sorted(set(index.values()))), config, index)


def _from_hub(spec: ModelSpec, hub_id: str) -> tuple[Path, bool]:
    """Folder of the hub's snapshot, and whether the local cache had it; else this model's files are downloaded."""
    from huggingface_hub import snapshot_download

    # Unanchored patterns cover both a pipeline's subfolder and a repository that is the model itself.
    stem = STEMS[spec.library]
    names = [f"{stem}.{spec.variant}.safetensors", f"{stem}*.safetensors.index*.json", "config.json"]
    wanted = [f"{p}{n}" for n in names for p in (f"{spec.subfolder}/", "")]
    try:
        cached = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
        _in_folder(spec, cached, from_hub=True)
        return cached, True
    except (OSError, ValueError, SvdqError):
        pass  # not in the cache, or only a part of it
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted))
        if _is_complete(spec, folder):
            return folder, False
        plain = [f"{p}{stem}*.safetensors" for p in (f"{spec.subfolder}/", "")]  # no such variant: use the full one
        return Path(snapshot_download(hub_id, allow_patterns=[*wanted, *plain])), False
    except Exception as error:  # the hub's client raises its own, requests', httpx's and OS errors
        reason = first_line(error, 120)
        raise ArtifactError(
            f"hub id '{hub_id}'",
            f"not in the local cache and not downloadable ({reason})",
            "its weights",
            BOTH,
        ) from error


def _is_complete(spec: ModelSpec, folder: Path) -> bool:
    try:
        _in_folder(spec, folder, from_hub=True)
    except SvdqError:
        return False
    return True
