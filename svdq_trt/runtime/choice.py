"""Which runtime an engine folder runs in: TensorRT where it has a plan and there is a GPU, else ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.engine.gpu import local_arch
from svdq_trt.runtime.protocol import Runner

RUNTIMES = ("auto", "tensorrt", "onnx")


def check_runtime(runtime: str) -> None:
    """Raise UsageError for a name that is none of RUNTIMES."""
    if runtime not in RUNTIMES:
        raise UsageError("--runtime", f"'{runtime}'", f"one of {', '.join(RUNTIMES)}")


def choose_runtime(folder: Path, data: Manifest, runtime: str) -> tuple[bool, str]:
    """Choose by what is there, unless `runtime` insists.

    Returns:
        whether it runs in TensorRT; why not, where that might be expected.

    Raises:
        UnsupportedError: TensorRT is asked for, and there is no GPU or no plan.
    """
    check_runtime(runtime)
    reason = "no GPU here" if local_arch() is None else "" if data.plan else "it has no plan yet"
    if reason and runtime == "tensorrt":
        raise UnsupportedError(str(folder), reason, "a plan and a GPU to run it", "Use --runtime onnx.")
    if runtime == "onnx" or not reason:
        return runtime != "onnx", ""
    return False, f"{folder}: {reason}, so its model.onnx runs in ONNX Runtime; the plan itself is not run."


@dataclass(frozen=True)
class Opening:
    """Options for opening sessions; see Session and OnnxSession."""

    allow_host_code: bool = False
    allow_arch_mismatch: bool = False
    device: int = 0
    onnx_device: str = "auto"

    def open(self, path: Path, in_tensorrt: bool, **more: Any) -> Runner:
        """Open an engine folder, or without TensorRT an .onnx file too; `more` is for a Session.

        Raises as Session or OnnxSession.
        """
        if in_tensorrt:
            from svdq_trt.runtime.session import Session

            return Session(
                path,
                allow_host_code=self.allow_host_code,
                device=self.device,
                allow_arch_mismatch=self.allow_arch_mismatch,
                **more,
            )
        from svdq_trt.runtime.onnx_session import OnnxSession

        return OnnxSession(path, device=self.onnx_device)
