"""The code that a module runs: its imports within our code, direct or not, and the libraries that these import.

Found by reading the sources, not listed by hand, so nothing that a stage runs can be forgotten. Imports inside
functions count, those under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

_OURS = ("svdq_trt", "svdq_export")
#: distributions that carry bytes and decide none: JSON between processes, files from a hub, which count by digest
_CARRIERS = {"msgspec", "huggingface_hub", "huggingface-hub"}
#: CPython 3.11 counts the depth of a parse for all threads together, and raises SystemError where two parse at once
_PARSING = threading.Lock()
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # fields of a statement that hold statements


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
    return {name: version(name) for name in names if name not in _CARRIERS}


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
    found: set[str] = set()
    with _PARSING:
        tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    for statement in _statements(tree):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            source = statement.module
            assert source is not None and not statement.level, f"{name}: a relative import"
            found |= {f"{source}.{a.name}" if _is_module(source, a.name) else source for a in statement.names}
    return frozenset(found)


def _statements(module: ast.Module) -> Iterator[ast.AST]:
    """Every statement of a module, in functions and classes too, but not what stands under TYPE_CHECKING."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += [inner for part in _BLOCKS for inner in getattr(node, part, ())]


def _is_module(package: str, name: str) -> bool:
    """Whether ``from package import name`` imports one of our modules."""
    if package.split(".")[0] not in _OURS:
        return False
    folder = _file(package).parent
    return _file(package).name == "__init__.py" and (
        (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
    )
