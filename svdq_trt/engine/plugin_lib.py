"""The TensorRT plugin library: finding it, identifying it, and loading it into a TensorRT module's registry.

``tensorrt`` and ``tensorrt_rtx`` have the same Python API; every function here takes the imported module.
Importing this file loads neither of them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.base.files import sha256
from svdq_trt.base.libraries import BUILD_HINT, PLACES, PLUGIN, PLUGIN_ENV, locate
from svdq_trt.contract.archs import KERNELS
from svdq_trt.contract.attention import EVERY_OP
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.ops import PLUGIN_NAMESPACE, PLUGIN_VERSION

#: e_machine of an ELF file -> platform.machine()
_MACHINES = {62: "x86_64", 183: "aarch64"}
_SHIM = Path("shim") / "libtensorrt_rtx.so"
_BUILD_HINT = f"{BUILD_HINT}, or set {PLUGIN_ENV} to a built {PLUGIN}."

#: Module name -> what load_into() loaded. A registry lives as long as the process, so this does too.
_loaded: dict[str, PluginLibrary] = {}


@dataclass(frozen=True)
class PluginLibrary:
    """A plugin library on disk.

    Attributes:
        path: absolute path.
        sha256: digest of the file, 64 hex digits; the manifest of an engine records it.
        version: version of the C API inside, such as ``1.0.0``.
        platform: what runs it: ``linux-x86_64``. archs: GPUs of the contract that it has machine code for.
    """

    path: Path
    sha256: str
    version: str
    platform: str
    archs: tuple[int, ...]


def find(path: Path | None = None) -> PluginLibrary:
    """The plugin library: `path` if given, else ``SVDQ_PLUGIN_LIBRARY`` if set, else the installed one.

    Raises:
        ArtifactError: the file is missing, does not load, or is not a plugin library of this project.
    """
    where = PLUGIN_ENV if path is None and os.environ.get(PLUGIN_ENV) else "TensorRT plugin library"
    path = (path or locate(PLUGIN, PLUGIN_ENV)).resolve()
    if not path.is_file():
        raise ArtifactError(where, f"no file {path}", "the built plugin library", _BUILD_HINT)
    digest = sha256(path)
    return PluginLibrary(path, digest, *_described(path, digest))


@functools.lru_cache(maxsize=8)
def _described(path: Path, digest: str) -> tuple[str, str, tuple[int, ...]]:  # by digest: a rebuilt file is another one
    """Version, platform and archs of a library."""
    try:
        library = ctypes.CDLL(str(path))
        version, supports = library.svdq_version, library.svdq_supports
    except (OSError, AttributeError) as error:
        raise ArtifactError(str(path), str(error), "a plugin library of svdq-trt", _BUILD_HINT) from error
    version.restype = ctypes.c_char_p
    archs = tuple(
        a for a in KERNELS if any(supports(FORMATS[f].index, dtype, a) for f in KERNELS[a] for dtype in (0, 1))
    )
    return str(version().decode()), _platform(path), archs


def _platform(path: Path) -> str:
    """``linux-x86_64``, from the header of an ELF file that this machine has loaded."""
    with path.open("rb") as file:
        machine = int.from_bytes(file.read(20)[18:], sys.byteorder)
    return f"linux-{_MACHINES.get(machine, f'elf{machine}')}"


def this_platform() -> str:
    """The platform that this process can load libraries of."""
    return f"linux-{platform.machine()}"


def require_arch(library: PluginLibrary, arch: int) -> None:
    """Check that a plan for `arch` would find kernels in the library that it carries.

    Raises:
        UnsupportedError: it was compiled for other GPUs.
    """
    if arch not in library.archs:
        have = ", ".join(f"sm_{a}" for a in library.archs) or "none of ours"
        raise UnsupportedError(
            str(library.path),
            f"machine code for {have}",
            f"for sm_{arch}",
            f"{BUILD_HINT} without SVDQ_ARCHS, or with {arch} among its architectures.",
        )


def registered_ops(trt: Any) -> set[str]:
    """Op types of this project in the module's plugin registry, of this contract's version."""
    return {
        c.name
        for c in trt.get_plugin_registry().all_creators
        if c.plugin_namespace == PLUGIN_NAMESPACE and c.plugin_version == PLUGIN_VERSION
    }


def load_into(trt: Any, path: Path | None = None) -> PluginLibrary:
    """Load the plugin library into the registry of `trt`; check that it has exactly the ops of the contract.

    Loading the same library again does nothing. What the plugin refuses later goes to the module's logger.

    Args:
        trt: the imported module, ``tensorrt`` or ``tensorrt_rtx``.
        path: the library; None means `find()`.

    Raises:
        ArtifactError: missing or broken library, another one already loaded, ops other than the contract's.

    Tested by tests/trt/test_plugin_lib.py.
    """
    library = find(path)
    name = str(trt.__name__)
    before = _loaded.get(name)
    if before is not None:
        if before.sha256 != library.sha256:
            raise ArtifactError(
                f"plugin library {library.path}",
                f"{library.sha256[:12]} while {before.path} ({before.sha256[:12]}) is loaded in {name}",
                "one plugin library per process",
                "Start a new process.",
            )
        return before
    preload_core(trt)
    if not registered_ops(trt):
        # The handle says nothing in Python; a library that does not load registers no ops.
        trt.get_plugin_registry().load_library(str(library.path))
    _check_ops(registered_ops(trt), library.path, name)
    _loaded[name] = library
    return library


def _check_ops(got: set[str], path: Path, module: str) -> None:
    missing, extra = sorted(set(EVERY_OP) - got), sorted(got - set(EVERY_OP))
    if missing or extra:
        parts = [f"without {', '.join(missing)}"] if missing else []
        parts += [f"with unknown {', '.join(extra)}"] if extra else []
        raise ArtifactError(
            f"plugin library {path}",
            f"{len(got)} ops in the registry of {module}, {' and '.join(parts)}",
            f"the {len(EVERY_OP)} ops of contract version {PLUGIN_VERSION}",
            "Rebuild the library: pip install . in the source folder.",
        )


def preload_core(trt: Any) -> None:
    """Make the bare name ``libtensorrt_rtx.so`` known in the process; a no-op for full TensorRT.

    TensorRT-RTX's ONNX parser opens its core by that name once a plugin is in the graph. The wheel has only
    ``libtensorrt_rtx.so.1``, and without the bare name the process aborts. The shim (plugins/trt/shim) bears
    the name and needs the ``.so.1`` that importing `trt` has loaded, so the dynamic linker joins the two. It is the
    one built with this machine's plugin library, never one beside a plan: no manifest names such a file.

    Raises:
        ArtifactError: neither the shim nor the name itself can be loaded.
    """
    if not str(trt.__name__).startswith("tensorrt_rtx"):
        return
    folders = [locate(PLUGIN, PLUGIN_ENV).parent, *PLACES]
    shim = next((f / _SHIM for f in folders if (f / _SHIM).is_file()), None)
    try:
        ctypes.CDLL(str(shim) if shim else _SHIM.name)
    except OSError as error:
        raise ArtifactError(
            str(shim or _SHIM.name), str(error), f"a library of that name next to {PLUGIN}", _BUILD_HINT
        ) from error
