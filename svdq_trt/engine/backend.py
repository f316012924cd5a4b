"""The TensorRT that builds: TensorRT-RTX (ahead of time, for other GPUs) or TensorRT (for the GPU present).

Both have the same Python API and run the same code here. The archs that a backend can build for are never listed
here: the loaded library and the CUDA driver are asked.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from svdq_trt.base.errors import IncompleteError, UsageError
from svdq_trt.engine.gpu import local_arch

#: backend name -> Python module, in the order in which `auto` asks.
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Backend:
    """A loaded TensorRT-like module."""

    name: str
    module: ModuleType

    @property
    def version(self) -> str:
        """Release, as the library says it."""
        return str(self.module.__version__)

    def targets(self) -> list[int]:
        """Compute capabilities this backend can build for on this machine."""
        named = getattr(self.module, "ComputeCapability", None)
        if named is not None:  # it builds ahead of time
            return sorted(int(n[2:]) for n in dir(named) if n.startswith("SM") and n[2:].isdigit())
        present = local_arch()
        return [] if present is None else [present]

    def set_target(self, config: Any, arch: int) -> None:
        """Make an IBuilderConfig build for `arch`, and no other: see ONE_PLAN_PER_ARCH."""
        named = getattr(self.module, "ComputeCapability", None)
        if named is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(named, f"SM{arch}"), 0)


def available(choice: str = "auto") -> list[Backend]:
    """The backends that import, in order of preference; `choice` narrows it to one."""
    if choice != "auto" and choice not in MODULES:
        raise UsageError("--backend", f"'{choice}'", f"auto, {', '.join(MODULES)}")
    names = list(MODULES) if choice == "auto" else [choice]
    found = []
    for name in names:
        try:
            found.append(Backend(name, importlib.import_module(MODULES[name])))
        except (ImportError, OSError):
            continue
    return found


def select(choice: str, arch: int) -> Backend:
    """The first backend that can build for `arch` here.

    Raises:
        IncompleteError: none can; says what each can build for.
    """
    backends = available(choice)
    for backend in backends:
        if arch in backend.targets():
            return backend
    if backends:
        said = "; ".join(f"{b.name} {b.version} builds for {_names(b.targets())}" for b in backends)
    else:
        said = f"no module {' or '.join(MODULES[n] for n in ([choice] if choice != 'auto' else MODULES))} is installed"
    raise IncompleteError(f"sm_{arch}", said, f"a TensorRT that builds for sm_{arch}")


def _names(targets: list[int]) -> str:
    return ", ".join(f"sm_{t}" for t in targets) or "no GPU, as none is present"
