"""The code that a module runs: its imports within our code, direct or not, and the libraries that these import.

Found by reading the sources, not listed by hand, so nothing that a stage runs can be forgotten. Imports inside
functions count, those under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

_OURS = ("svdq_trt", "svdq_export")


@cache
def closure(module: str) -> tuple[dict[str, Path], frozenset[str]]:
    """All that importing and running `module` can load.

    Returns:
        our modules by name with their files, their packages included; and the top-level names of everything else
        outside the standard library.
    """
    found: dict[str, Path] = {}
    others: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name.split(".")[0] not in _OURS:
            others.add(name.split(".")[0])
            continue
        found[name] = _file(name)
        if name == "svdq_trt":  # the root loads its public names on demand, and our own code never uses them
            continue
        waiting += [*_imports(name), *filter(None, [name.rpartition(".")[0]])]
    return found, frozenset(others - sys.stdlib_module_names)


@cache
def code_digest(module: str) -> str:
    """Hash of our source files in `module`'s closure."""
    digest = hashlib.sha256()
    for name, path in sorted(closure(module)[0].items()):
        digest.update(name.encode() + b"\0" + file_digest(path))
    return digest.hexdigest()


@cache
def file_digest(path: Path) -> bytes:
    """Hash of one source file."""
    return hashlib.sha256(path.read_bytes()).digest()


@cache
def library_versions(module: str) -> dict[str, str]:
    """Version of every installed distribution that `module`'s closure imports from."""
    names = sorted({d for other in closure(module)[1] for d in _distributions().get(other, ())})
    return {name: version(name) for name in names}


def installed(names: Iterable[str]) -> dict[str, str]:
    """Version of each distribution in `names` that is installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@cache
def _file(name: str) -> Path:
    """The source file of one of our modules or packages; nothing is imported to find it."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    assert spec is not None and spec.origin is not None, name
    path = Path(spec.origin).parent.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(name: str) -> frozenset[str]:
    """Modules that a source file imports; ``from package import module`` counts as the module."""
    path, package = _file(name), name
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{package}: a relative import"
            found |= {f"{node.module}.{a.name}" if _is_module(node.module, a.name) else node.module for a in node.names}
    return frozenset(found)


def _is_module(package: str, name: str) -> bool:
    """Whether ``from package import name`` imports one of our modules."""
    if package.split(".")[0] not in _OURS:
        return False
    folder = _file(package).parent
    return _file(package).name == "__init__.py" and (
        (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
    )
