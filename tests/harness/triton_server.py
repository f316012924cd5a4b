"""A real tritonserver on this machine: the one in the nvidia-pytriton wheel, with its Python backend.

``pip install --no-deps nvidia-pytriton`` anywhere on the path, or with ``--target`` into <prefix>/tritonserver. The
package's own Python code is not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from svdq_trt.serve.config import NUMBERS
from tests.harness import slim

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PR_SET_PDEATHSIG = 1


def _root(folder: Path | None = None) -> Path | None:
    """Where the server's files are, in `folder` or wherever the package is installed."""
    spec = importlib.util.find_spec("pytriton")
    places = [(folder or Path(sys.prefix) / "tritonserver") / "pytriton"]
    if folder is None and spec:
        places += map(Path, spec.submodule_search_locations or [])
    return next((p / "tritonserver" for p in places if (p / "tritonserver" / "bin" / "tritonserver").is_file()), None)


def _libraries(root: Path) -> str:
    places = [str(root.parents[1] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return ":".join([*places, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])  # which may have the driver's


def missing(folder: Path | None = None) -> str:
    """Why no server can run here, that of `folder` if given; empty when one can."""
    if importlib.util.find_spec("tritonclient") is None:
        return "needs tritonclient"
    root = _root(folder)
    if root is None:
        return "needs a tritonserver: pip install --no-deps nvidia-pytriton"
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        return f"this tritonserver has no Python backend for Python {PYTHON}"
    tried = subprocess.run(
        ["ldd", str(stub)],
        env={**os.environ, "LD_LIBRARY_PATH": _libraries(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    lost = [line.split()[0] for line in tried.stdout.splitlines() if "not found" in line]
    return f"the Python backend needs {', '.join(lost)}" if lost else ""


class TritonServer:
    """Started on entry and ready; stopped on exit, and killed with everything it started if it does not stop."""

    def __init__(
        self,
        repository: Path,
        scratch: Path,
        models: list[str],
        python: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        """Serve `models` of `repository`, with the environment that has the interpreter `python`.

        Without one it is this environment, less what serving needs not (slim.ABSENT). `scratch` is an empty folder.
        `folder` has the server's files, where it is not the installed one.
        """
        root = _root(folder)
        if root is None:
            raise FileNotFoundError(missing(folder))
        self.root = root
        self._python = python or slim.interpreter(scratch / "slim")
        self.repository, self.scratch, self.models = repository, scratch, models
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in _free_ports(2))
        self.log = scratch / "tritonserver.log"
        self._shm = f"svdq-test-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> TritonServer:
        self._process = subprocess.Popen(
            self._command(),
            env=self._environment(),
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            self._wait(600)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Of the server; the stubs of its models are its children."""
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if line[:1] not in "|+")[-4000:]

    def _command(self) -> list[str]:
        backends = self.scratch / "backends"
        shutil.copytree(self.root / "backends", backends)
        stub = self.root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
        (backends / "python" / stub.name).write_bytes(stub.read_bytes())
        (backends / "python" / stub.name).chmod(0o755)
        (host, http), (_, grpc) = self.http.split(":"), self.grpc.split(":")
        return [
            str(self.root / "bin" / "tritonserver"),
            "--model-repository",
            str(self.repository),
            "--backend-directory",
            str(backends),
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            "--http-address",
            host,
            "--http-port",
            http,
            "--grpc-address",
            host,
            "--grpc-port",
            grpc,
            "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self._shm}",
        ]

    def _environment(self) -> dict[str, str]:
        """The stub takes its packages from the first python3 on the PATH."""
        path = f"{self._python.parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": _libraries(self.root)}

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5).close()
                return
            if not self.alive():
                raise RuntimeError(f"tritonserver ended:\n{self.tail()}")
            time.sleep(0.2)
        raise TimeoutError(f"tritonserver is not ready after {seconds} s:\n{self.tail()}")

    def _stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for left in Path("/dev/shm").glob(f"{self._shm}*"):
            left.unlink(missing_ok=True)


def ask(server: TritonServer, protocol: str, model: str, inputs: dict[str, Any], **parameters: str) -> dict[str, Any]:
    """Outputs by name. A client of its own: tritonclient's HTTP client belongs to one thread."""
    module = importlib.import_module(f"tritonclient.{protocol}")
    as_json = {"as_json": True} if protocol == "grpc" else {}
    with module.InferenceServerClient(getattr(server, protocol)) as client:
        names = [output["name"] for output in client.get_model_metadata(model, **as_json)["outputs"]]
        answer = client.infer(model, tensors(protocol, inputs), parameters=parameters)
        return {name: answer.as_numpy(name) for name in names}


def tensors(protocol: str, inputs: dict[str, Any]) -> list[Any]:
    """Arrays by name as tritonclient's inputs."""
    from tritonclient.utils import np_to_triton_dtype

    module = importlib.import_module(f"tritonclient.{protocol}")
    found = []
    for name, value in inputs.items():
        found.append(module.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        found[-1].set_data_from_numpy(value)
    return found


def picture_inputs(prompt: str = "a fox", negative: str | None = None, **numbers: float) -> dict[str, np.ndarray]:
    """The inputs of a request to a pipeline that merges requests."""
    from tritonclient.utils import triton_to_np_dtype

    texts = {"prompt": prompt} | ({} if negative is None else {"negative": negative})
    inputs = {name: np.frombuffer(text.encode(), np.uint8)[None] for name, text in texts.items()}
    kinds = {name: triton_to_np_dtype(NUMBERS[name].removeprefix("TYPE_")) for name in numbers}
    return inputs | {name: np.array([[value]], kinds[name]) for name, value in numbers.items()}


def _die_with_parent() -> None:
    """Ask for SIGTERM, by which a server also ends its stubs; killed, it leaves them."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
