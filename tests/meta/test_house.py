"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "svdq_trt"
#: a stage may import itself and what stands before it; `commands` run everything
ORDER = ["spec", "ref", "numerics", "models", "checkpoint", "calibrate", "quantize", "nn", "interop", "lora"]
ORDER += ["engine", "runtime", "check", "pipeline", "serve", "compile", "report", "commands"]
FREE = {"errors", "files", "libraries", "memory", "spec", "numerics"}  # importable from anywhere
#: module -> module: edges against the order, each with its reason
ALLOWED = {
    ("calibrate", "pipeline"): "inputs recorded in a pipeline: its calls become a model's inputs there",
    ("calibrate", "engine"): "TensorProfile, in which a Runner describes its inputs",
    ("quantize", "nn"): "quantizing installs the module it made",
    ("quantize", "compile"): "the Progress protocol, the ranks that share layers and devices",
    ("lora", "compile"): "the Progress protocol",
    ("engine", "compile"): "the Progress protocol",
}
#: what people read; the benchmarks' own log names experiments, too
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
#: what torchrun tells its processes
TORCHRUN = {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
TORCHRUN |= {"LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def sources(*suffixes: str) -> list[Path]:
    folders = ("svdq_trt", "export", "plugins", "tests", "tools", "benchmarks", "examples")
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in suffixes]


def runtime_imports(path: Path) -> set[str]:
    """First component below svdq_trt of every import outside TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.module:
            parts = node.module.split(".")
            if parts[0] == "svdq_trt":
                found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    files = sorted((PACKAGE / package).rglob("*.py")) or sorted(PACKAGE.glob(f"{package}.py"))
    before = set(ORDER[: ORDER.index(package) + 1]) | FREE
    for path in files:
        for name in runtime_imports(path):
            if name in ORDER and name not in before:
                assert (package, name) in ALLOWED, f"{path.relative_to(ROOT)} imports svdq_trt.{name}"


def test_every_package_has_its_place():
    packages = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert packages <= set(ORDER), packages - set(ORDER)


def test_files_are_small():
    for path in sources(".py", ".cu", ".cuh", ".cpp", ".h"):
        cap = 600 if path.suffix in (".cu", ".cuh") else 400
        lines = len(path.read_text().splitlines())
        assert lines <= cap, f"{path.relative_to(ROOT)}: {lines} lines, want at most {cap}"


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, svdq_trt, svdq_trt.cli\n"
        "heavy = {'torch', 'tensorrt', 'tensorrt_rtx', 'onnx', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_kernels_know_no_framework():
    for path in (ROOT / "plugins" / "kernels").rglob("*"):
        if path.is_file():
            assert not re.search(r"#include\s*[<\"](NvInfer|torch|ATen|c10)", path.read_text()), path
    for path in (ROOT / "plugins" / "trt").rglob("*"):
        if path.is_file():
            assert "__global__" not in path.read_text(), path


def test_test_folders_can_be_run_together():
    """Folders of tests are no packages: two modules of one name, as several conftest are, would be one of them."""
    modules = [p for p in (ROOT / "tests").rglob("*.py") if p.name != "conftest.py"]
    modules += [p for folder in ("benchmarks", "benchmarks/micro") for p in (ROOT / folder).glob("*.py")]
    by_name: dict[str, Path] = {}
    for path in modules:
        assert by_name.setdefault(path.stem, path) == path, f"{path} and {by_name[path.stem]}"
        assert not re.search(r"^\s*(from|import) conftest\b", path.read_text(), re.M), f"{path} imports a conftest"


def test_environment_variables_are_few_and_ours():
    allowed = {"PYTHONUNBUFFERED"} | TORCHRUN
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in re.findall(r"environ(?:\.get\(|\[)\s*\"(\w+)\"", path.read_text()):
            assert name in allowed, f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_files_of_documents_exist(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    for target in re.findall(r"`((?:svdq_trt|export|plugins|tests|tools|benchmarks)/[\w./]*)`", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_parse(document):
    """Every command of a document's shell blocks is one that exists, with options that exist."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.S)).replace("\\\n", "")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    from svdq_trt.cli import parse

    for line in blocks.splitlines():
        words = shlex.split(line, comments=True)
        match words:
            case []:
                continue
            case ["make", target]:
                assert target in targets, line
            case ["svdq-trt", *rest] | ["torchrun", _, _, "-m", "svdq_trt.cli", *rest]:
                parse(rest)
            case ["python", "build_engines.py", *rest] | ["torchrun", _, _, "build_engines.py", *rest]:
                parse(["build", *rest])
            case ["python", script, *_]:
                assert (ROOT / script).exists(), line
            case _:
                assert words[0] in ("source", "tritonserver"), line
