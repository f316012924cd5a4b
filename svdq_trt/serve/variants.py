"""The variants of a model: the files of their version folders, what they refuse, and what the server needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import all_suffixes
from pathlib import Path

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact import pipeline_file
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.base.extras import required_by
from svdq_trt.base.libraries import AUTOLOAD, AUTOLOAD_ENV, BUILD_HINT, locate
from svdq_trt.serve.config import LORAS, OURS, RUNTIME, WARM_UP, ServedLora, Serving, largest_bytes

VARIANTS = ("tensorrt", "python", "onnxruntime", "pipeline")
DEVICES = ("gpu", "cpu")
_MODULES = tuple(all_suffixes())  # Triton's Python backend imports from the version folder

MODEL_PY = '''\
"""The engine beside this file, for Triton's Python backend. Its Python needs svdq-trt."""

from svdq_trt.serve.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
PIPELINE_PY = MODEL_PY.replace("python_model", "pipeline_model").replace("engine", "engines")


@dataclass(frozen=True)
class Contents:
    """The planned contents of a version folder.

    Attributes:
        main: the file that the backend opens. files: files of the engine folder, or libraries, by their names in the
            version folder. texts: files to write. parameters: those of config.pbtxt.
        dtypes: the manifest's -> the served file's, where they differ.
    """

    main: str
    files: dict[str, Path]
    texts: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)


def contents(engine: Path, serving: Serving) -> Contents:
    """Check that `engine` can be served this way and collect what the version folder needs.

    Raises:
        UsageError: no such variant or device, or not together. UnsupportedError: Triton has another TensorRT than the
            plan's. ArtifactError: the engine folder is incomplete or damaged.
    """
    if serving.variant not in VARIANTS:
        raise UsageError("--variant", f"'{serving.variant}'", f"one of {', '.join(VARIANTS)}")
    if serving.device not in DEVICES:
        raise UsageError("--device", f"'{serving.device}'", f"one of {', '.join(DEVICES)}")
    data = manifests.read(engine)
    if data.onnx.pieces:
        got = "an engine with a step cache, which the server would share between requests"
        raise UnsupportedError(str(engine), got, "one that was built without --step-cache")
    slots = data.lora_slots
    if slots and serving.variant not in OURS:
        got = f"an engine with LoRA slots, which Triton's {serving.variant} backend does not fill"
        fix = "Use it, or build with --lora FILE instead of --lora-slots."
        raise UnsupportedError(str(engine), got, "--variant python", fix)
    if serving.loras and not slots:
        raise UsageError("--lora", "an engine without LoRA slots", "one built with --lora-slots R")
    if serving.variant == "tensorrt":
        return _tensorrt(engine, serving)
    if serving.variant == "onnxruntime":
        return _onnxruntime(engine)
    if serving.variant == "pipeline":
        made = _pipeline(engine, serving)
    else:
        made = _session(engine) if serving.device == "gpu" else _onnx_session(engine)
    return _with_loras(engine, made, serving.loras) if serving.loras else made


def usual_variant(engine: Path, device: str) -> str:
    """A pipeline where there is one; else what serves a plan: Triton's own backend only runs those of full TensorRT."""
    if (engine / pipeline_file.NAME).is_file():
        return "pipeline"
    backend = manifests.read(engine).backend
    return "tensorrt" if device == "gpu" and backend and backend.name == "tensorrt" else "python"


def server_lines(engine: Path, serving: Serving, version: str, repository: Path) -> list[tuple[str, str]]:
    """Commands that start the server, as (when, shell command); paths are those of this machine.

    Args:
        version: name of the version folder.
    """
    options, models = "--disable-auto-complete-config", shlex.quote(str(repository))
    start = f"tritonserver --model-repository {models} {options}"
    inside = f"tritonserver --model-repository /models {options}"
    shared = f"--shm-size {_shared_mib(engine, serving)}m"
    ports = "--publish 8000-8002:8000-8002"
    docker = (
        f"docker run --rm{' --gpus all' if serving.device == 'gpu' else ''} {shared} {ports} --volume {models}:/models"
    )
    if serving.variant in OURS:
        return [("", start), ("in a container of examples/triton/Dockerfile", f"{docker} svdq-triton")]
    image = "nvcr.io/nvidia/tritonserver:YY.MM-py3"
    if serving.variant == "onnxruntime":
        return [("", start), ("in a container whose ONNX Runtime has opset 23", f"{docker} {image} {inside}")]
    library = f"{serving.name}/{version}/{AUTOLOAD}"
    backend = manifests.read(engine).backend
    assert backend is not None  # see _tensorrt
    plugins = "--backend-config=tensorrt,plugins="
    contained = f"{docker} {image} {inside} {plugins}{shlex.quote(f'/models/{library}')}"
    return [
        ("", f"{start} {plugins}{shlex.quote(f'{repository}/{library}')}"),
        (f"in a container with TensorRT {backend.version}", contained),
    ]


def _shared_mib(engine: Path, serving: Serving) -> int:
    """MiB of /dev/shm: two of the largest requests for each instance, and what Triton takes for itself."""
    return 64 + 2 * serving.instances * -(-largest_request(engine, serving) // 2**20)


def largest_request(engine: Path, serving: Serving) -> int:
    """Bytes of all inputs and outputs in the largest request: of a pipeline, those of the largest picture."""
    if serving.variant != "pipeline":
        return largest_bytes(manifests.read(engine))
    with required_by("a pipeline in Triton"):
        from svdq_trt.models import get_model
    data = manifests.read(engine)
    most = get_model(data.source).built_sizes(data, 2)  # the VAE's engine may take no more than a tile
    return most["height"] * most["width"] * 3


def _with_loras(engine: Path, made: Contents, loras: Sequence[ServedLora]) -> Contents:
    """Contents with LoRA files, each of which has been laid out for the engine's slots.

    Raises:
        UsageError: two of one name. ArtifactError, ShapeError: a file that does not fit the engine.
    """
    if len({lora.name for lora in loras}) != len(loras):
        raise UsageError("--lora", "a name that is given twice", "one name per file")
    with required_by("--lora"):
        from svdq_trt.runtime.lora import open_slots
    entry = manifests.verify(engine, parts=("lora_slots",)).lora_slots
    assert entry is not None  # see `contents`
    slots = open_slots(engine, entry)
    for lora in loras:
        slots.prepare([(lora.path, lora.strength)])
    table = json.dumps({lora.name: [lora.file, lora.strength] for lora in loras})
    files = made.files | {lora.file: lora.path for lora in loras}
    return replace(made, files=files, parameters=made.parameters | {LORAS: table})


def _tensorrt(engine: Path, serving: Serving) -> Contents:
    if serving.device != "gpu":
        raise UsageError("--device", serving.device, "gpu for --variant tensorrt", "Or use --variant python.")
    data = manifests.read(engine)
    if data.plan is None:
        raise manifests.no_plan(engine, data, "tensorrt")
    if data.backend is None or data.backend.name != "tensorrt":
        raise UnsupportedError(
            str(engine),
            f"a plan of {data.backend.name} {data.backend.version}"
            if data.backend
            else "a plan of an unnamed TensorRT",
            "one of full TensorRT, which is what Triton's tensorrt backend is",
            f"Serve it with --variant python or --variant onnxruntime, or, on a machine with an {data.arch} GPU and "
            f"Triton's release of TensorRT, build that plan: {manifests.finish_command(engine, 'tensorrt')}",
        )
    manifests.verify(engine, parts=("plan", "plugin"))
    autoload = locate(AUTOLOAD, AUTOLOAD_ENV)
    if not autoload.is_file():
        raise ArtifactError(
            AUTOLOAD, f"no file {autoload}", "the library that registers the plugin when it is opened", f"{BUILD_HINT}."
        )
    return Contents("model.plan", _engine_files(engine, data, "plan", "plugin") | {AUTOLOAD: autoload})


def _session(engine: Path) -> Contents:
    data = manifests.read(engine)
    parts = ("plan", *(("plugin",) if data.plugin else ()), *_slots(data))  # a pipeline's other parts have no plugin
    manifests.verify(engine, parts=parts)
    files = _engine_files(engine, data, *parts)
    return Contents("model.py", files, {"model.py": MODEL_PY}, {RUNTIME: "session"})


def _onnx_session(engine: Path) -> Contents:
    data = manifests.read(engine)
    manifests.verify(engine, parts=("onnx", *_slots(data)))
    files = _engine_files(engine, data, "onnx", *_slots(data))
    return Contents("model.py", files, {"model.py": MODEL_PY}, {RUNTIME: "onnxruntime"})


def _pipeline(engine: Path, serving: Serving) -> Contents:
    """The version folder is the whole folder of engines, less what only a build reads."""
    if serving.cuda_graphs:
        raise UsageError("--cuda-graphs", "given for a pipeline", "the denoiser alone: --variant python")
    file, _ = pipeline_file.verify(engine)
    files = {pipeline_file.NAME: engine / pipeline_file.NAME}
    files |= {entry.file: engine / entry.file for entry in file.files}
    for entry in file.engines.values():
        one = _session(engine / entry.folder) if serving.device == "gpu" else _onnx_session(engine / entry.folder)
        files |= {str(Path(entry.folder) / name): path for name, path in one.files.items()}
    parameters = {RUNTIME: one.parameters[RUNTIME]} | ({WARM_UP: "1"} if serving.warm_up else {})
    return Contents("model.py", files, {"model.py": PIPELINE_PY}, parameters)


def _slots(data: Manifest) -> tuple[str, ...]:
    return ("lora_slots",) if data.lora_slots else ()


def _onnxruntime(engine: Path) -> Contents:
    data = manifests.verify(engine, parts=("onnx",))
    files = _engine_files(engine, data, "onnx")
    name = Path(data.onnx.file).name
    if not _has_bfloat16(data):
        return Contents(name, files)
    del files[name]
    twin = _float32_twin(engine, data)
    return Contents(twin.name, files | {twin.name: twin}, dtypes={"bfloat16": "float32"})


def _has_bfloat16(data: Manifest) -> bool:
    return any(t.dtype == "bfloat16" for t in (*data.inputs, *data.outputs))


def _float32_twin(engine: Path, data: Manifest) -> Path:
    """Path of the float32 twin, for ONNX Runtime's lack of bfloat16 arithmetic; it shares the weights' file."""
    from svdq_export.twin import write_float32_twin

    twin: Path = write_float32_twin(engine / Path(data.onnx.file).name)
    return twin


def _engine_files(engine: Path, data: Manifest, *parts: str) -> dict[str, Path]:
    """The manifest and the files of `parts`, under the names that the manifest's readers expect."""
    paths = {"manifest.json": engine / manifests.NAME}
    for part in parts:
        path = engine / Path(getattr(data, part).file).name
        if path.name.endswith(_MODULES) and not path.name.startswith("lib"):
            got = f"a file of part '{part}' that Python would import from the model's folder"
            raise ArtifactError(
                str(path), got, "lib*.so", "Rename the library that SVDQ_PLUGIN_LIBRARY names; build again."
            )
        paths[path.name] = path
        weights = path.with_name(f"{path.name}.data")
        if part == "onnx" and weights.is_file():
            paths[weights.name] = weights
    return paths
