"""Locating the built libraries: beside this package, or in site-packages when the sources are used in place."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

PLUGIN = "libsvdq_trt_plugin.so"  # the TensorRT plugin, kernels and C API inside
KERNELS = "libsvdq.so"  # kernels and C API alone
AUTOLOAD = "libsvdq_trt_autoload.so"  # opened by a process that runs TensorRT, it registers the plugin beside it
PLUGIN_ENV = "SVDQ_PLUGIN_LIBRARY"  # path of a plugin library to use instead of the installed one
KERNELS_ENV = "SVDQ_LIBRARY"  # the same for the kernels
AUTOLOAD_ENV = "SVDQ_AUTOLOAD_LIBRARY"  # the same for the autoloader
BUILD_HINT = "Run pip install . in the source folder"

#: an editable install or PYTHONPATH uses the source folder's Python files and site-packages' libraries
PLACES = (
    Path(__file__).resolve().parent.parent / "lib",
    Path(sysconfig.get_path("platlib")) / "svdq_trt" / "lib",
)


def locate(name: str, env: str) -> Path:
    """Path of a library: from the environment variable if set, else the first place that has it (it may not exist)."""
    override = os.environ.get(env)
    if override:
        return Path(override).resolve()
    return next((p / name for p in PLACES if (p / name).is_file()), PLACES[0] / name)
