"""One step of a build as a typed value: its fields are its arguments, and its key says when it must run again.

A stage reads files, writes files into one folder, and returns a typed result. It runs in a process of its own
(fork_server.py, worker.py), to which it travels as JSON; the command's process only declares it. That is why a stage
imports heavy modules inside `run`: declaring a stage loads neither torch nor ONNX nor TensorRT.

The key is the hash of the stage's class, of the fields that decide its result, of the code that it runs and of the
libraries that the code uses (code.py). A file's content counts, not its path: a File counts by its id, a step that is
a field of another by its own key, and a field with UNKEYED as its metadata not at all.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from svdq_trt.base.progress import Progress
from svdq_trt.build.code import code_digest, installed, library_versions

R = TypeVar("R", bound="Result", covariant=True)


#: Metadata of a field that does not decide the result: paths, who shares the work; such fields are keyword-only.
UNKEYED = {"keyed": False}


@dataclass(frozen=True)
class File:
    """A file that a stage reads: its path, and its content by a digest or by the key of the stage that wrote it."""

    path: Path = field(kw_only=True, metadata=UNKEYED)
    id: str


@dataclass(frozen=True)
class Result:
    """The result of a stage; `notes` are shown to the user, also when the stage is reused."""

    notes: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Step:
    """Work identified by a key and recorded beside its outputs.

    Attributes:
        name: of its record. out: its main output; other outputs in the same folder are in `files`.
        loads: distributions that the libraries it imports load by themselves.
    """

    name: ClassVar[str]
    loads: ClassVar[tuple[str, ...]] = ()

    out: Path = field(kw_only=True, metadata=UNKEYED)

    @property
    def folder(self) -> Path:
        """The folder of its outputs and its record."""
        return self.out.parent

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the outputs in its folder."""
        return (self.out.name,)

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on."""
        return key_of(type(self).__qualname__, type(self).__module__, [keyed(self), installed(self.loads)])


@dataclass(frozen=True)
class Stage(Step, ABC, Generic[R]):
    """A step that runs in a process of its own.

    Attributes:
        name: also names its log and its figures in the manifest. result: the type that `run` returns.
    """

    result: ClassVar[type[Result]]

    @property
    @abstractmethod
    def label(self) -> str:
        """The label shown to the user while it runs."""

    def imports(self) -> None:
        """Import what takes long to import in `run`, and do nothing else: all stages then have it (fork_server.py)."""

    @abstractmethod
    def run(self, progress: Progress) -> R | None:
        """Do the work, in this process. None from a rank that only helped.

        Raises:
            SvdqError: bad input, named.
        """

    def to_json(self) -> str:
        """The stage as text, for `from_json` in another process."""
        kind = type(self)
        return json.dumps({"stage": f"{kind.__module__}:{kind.__qualname__}", "fields": to_builtins(self)})


@dataclass(frozen=True)
class SharedStage(Stage[R]):
    """A stage whose work torchrun's ranks share; `job` numbers the shared stages, None without other ranks."""

    job: int | None = field(default=None, kw_only=True, metadata=UNKEYED)


def from_json(text: str) -> Stage[Result]:
    """Rebuild the stage from `Stage.to_json`; imports the module that declares it."""
    data = json.loads(text)
    module, _, name = data["stage"].partition(":")
    stage: Stage[Result] = from_builtins(data["fields"], getattr(importlib.import_module(module), name))
    return stage


def key_of(name: str, module: str, fields: Any) -> str:
    """Key of the work called `name` that `module` does with `fields` (JSON)."""
    code, libraries = code_digest(module), library_versions(module)
    parts = {"name": name, "code": code, "libraries": libraries, "fields": fields}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keyed(value: Any) -> Any:
    """The part of a field's value that counts in the stage's key, as JSON."""
    if is_dataclass(value):
        counted = [f.name for f in fields(value) if f.metadata.get("keyed", True)]
        return {name: keyed_field(getattr(value, name)) for name in counted}
    if isinstance(value, Mapping):
        return {str(name): keyed_field(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [keyed_field(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    raise TypeError(f"{value!r} in a key: give its field UNKEYED, or say what it depends on")


def keyed_field(value: Any) -> Any:
    """As `keyed`, except that a step counts by its key, and so by its code."""
    return value.key if isinstance(value, Step) else keyed(value)


def to_builtins(value: Any) -> Any:
    """A stage or result as JSON's types; paths are text."""
    return msgspec.to_builtins(value, enc_hook=_path_as_text)


def _path_as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of a stage: a {type(value).__name__}, want numbers, text, paths and containers of them")


T = TypeVar("T")


def from_builtins(data: Any, kind: type[T]) -> T:
    """The inverse of `to_builtins`. Raises msgspec.ValidationError for data of another shape."""
    return msgspec.convert(data, kind, dec_hook=lambda wanted, value: wanted(value))
