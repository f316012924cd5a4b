"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import fnmatch
import functools
import graphlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from svdq_trt import __version__
from svdq_trt.base.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "svdq_trt"
#: a package imports itself and what stands before it, lazily too; no exceptions
ORDER = ["base", "contract", "artifact", "models", "checkpoint", "nn", "calibrate", "quantize", "interop", "lora"]
ORDER += ["engine", "svdq_export", "runtime", "pipeline", "evaluate", "bench", "serve", "build", "cli"]
#: what people read; benchmarks/LOG.md also names files that are gone
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "findings/README.md"]
DOCUMENTS += sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))
#: the words behind it, to the end of the code
PIP = re.compile(r"pip install ((?:--?[\w-]+ |\"[^\"]+\"|'[^']+'|[\w.\[\]-]+)+)")
#: what torchrun passes to its processes
TORCHRUN = {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
TORCHRUN |= {"LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def sources(*suffixes: str) -> list[Path]:
    folders = ("svdq_trt", "export", "plugins", "tests", "tools", "benchmarks", "examples")
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in suffixes]


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; the folder export/ is the package svdq_export."""
    found = {}
    for name, folder in (("svdq_trt", PACKAGE), ("svdq_export", ROOT / "export")):
        for path in sorted(folder.rglob("*.py")):
            parts = [name, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path, eager: bool = False) -> set[str]:
    """Modules of ours that a file imports outside TYPE_CHECKING; `eager`: leave out what functions import."""
    known, tree = modules(), ast.parse(path.read_text())
    skipped = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    if eager:
        skipped += [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    out_of_sight = {id(inner) for node in skipped for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in out_of_sight:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found


#: module or package -> why it imports modules of ours inside functions
LAZY = {
    "svdq_trt": "what it offers by name loads on first use",
    "svdq_trt.cli": "start-up: a command loads what it runs on when it runs",
    "svdq_trt.build.stages": "start-up: a stage is declared in one process and runs in another",
    "svdq_trt.evaluate.diff": "models where inputs are made up",
    "svdq_trt.models.spec": "transformers is optional",
    "svdq_trt.nn": "the kernel library is there on a GPU only",
    "svdq_trt.quantize.gptq": "Triton is optional",
    "svdq_trt.runtime.choice": "either runtime alone, each with a library of its own",
    "svdq_trt.runtime.loading": "torch, which is imported while the denoiser's engine is opened",
    "svdq_trt.runtime.device": "torch or pycuda, whichever is installed",
    "svdq_trt.runtime.onnx_session": "onnx for bfloat16 models, LoRA for graphs with slots",
    "svdq_trt.runtime.session": "LoRA for engines with slots",
    "svdq_trt.serve.pipeline_model": "what needs torch, to say in one sentence where it is missing",
    "svdq_trt.serve.python_model": "the runtime that the served model asks for",
    "svdq_trt.serve.variants": "onnx for bfloat16 models",
}


def package(module: str) -> str:
    """``svdq_trt.quantize.layer`` -> ``quantize``; the root package is not in ORDER."""
    first, *rest = module.split(".")
    return first if first == "svdq_export" or not rest else rest[0]


@pytest.mark.parametrize("name", ORDER)
def test_packages_import_one_way(name):
    before = set(ORDER[: ORDER.index(name) + 1])
    for module, path in modules().items():
        if package(module) == name:
            for imported in imports(path) & modules().keys() - {"svdq_trt"}:
                assert package(imported) in before, f"{module} imports {imported}"


def test_every_package_has_its_place():
    assert {package(module) for module in modules()} - {"svdq_trt"} == set(ORDER)


def test_modules_import_each_other_in_no_circle():
    known = modules()
    edges = {name: imports(path, eager=True) & known.keys() - {name} for name, path in known.items()}
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError, which names the circle


def test_imports_inside_functions_have_a_reason():
    known, found = modules(), set()
    for name, path in known.items():
        if lazy := (imports(path) - imports(path, eager=True)) & known.keys():
            keys = [key for key in LAZY if name == key or (key != "svdq_trt" and name.startswith(f"{key}."))]
            assert keys, f"{name} imports {lazy} inside a function"
            found |= set(keys)
    assert found == set(LAZY), "a reason without an import"


def test_our_own_code_imports_no_name_that_a_package_loads_on_demand():
    """Those are for users: a stage's key covers what the stage imports, and would not find what is behind them."""
    on_demand = {name for name, path in modules().items() if "\ndef __getattr__" in path.read_text()} - {"svdq_trt"}
    assert on_demand >= {"svdq_export", "svdq_trt.runtime"}
    for module, path in modules().items():
        assert not imports(path) & on_demand, module


def test_every_library_is_declared():
    """What is imported is required by the package, or by the extra that base/extras.py names for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {name: {_module(line) for line in lines} for name, lines in extras.items()}
    for module, extra in EXTRAS.items():
        assert module in required[extra], module
    for extra in ("build", "prompts", "runtime", "triton"):
        assert required[extra] <= EXTRAS.keys(), extra
    have = {_module(line) for line in project["dependencies"]} | EXTRAS.keys() | {"svdq_trt", "svdq_export"}
    have |= {"google", "tensorrt", "triton"}  # protobuf, which onnx requires; the extra `tensorrt`; part of torch
    have |= {"triton_python_backend_utils"}  # in Triton's own processes
    for name, path in modules().items():
        found = {module.split(".")[0] for module in imports(path)}
        assert found <= have | sys.stdlib_module_names, f"{name}: {found - have - sys.stdlib_module_names}"


def _module(requirement: str) -> str:
    """``onnx-ir>=1.1`` -> ``onnx_ir``, as all our libraries spell it."""
    return re.split(r"[^\w-]", requirement)[0].replace("-", "_")


def test_base_needs_the_standard_library_alone():
    for module, path in modules().items():
        if package(module) == "base":
            for imported in imports(path, eager=True):
                first = imported.split(".")[0]
                assert first in sys.stdlib_module_names or first == "svdq_trt", f"{module} imports {imported}"


def test_files_are_small():
    for path in sources(".py", ".cu", ".cuh", ".cpp", ".h"):
        cap = 600 if path.suffix in (".cu", ".cuh") else 400
        lines = len(path.read_text().splitlines())
        assert lines <= cap, f"{path.relative_to(ROOT)}: {lines} lines, want at most {cap}"


def test_only_tables_are_laid_out_by_hand():
    """The formatters decide about everything else."""
    for path in sources(".py"):
        assert not re.search(r"#\s*fmt:\s*(off|skip)", path.read_text()), path
    for path in sources(".cu", ".cuh", ".cpp", ".h"):
        for line in re.findall(r"// clang-format off.*\n(.*)", path.read_text()):
            assert re.search(r"\[\w*\] = \{", line), f"{path}: {line}, want an array"


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


def test_test_folders_are_packages():
    """So that two may have a module of one name, and all are imported from the root: no sys.path of their own."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name.startswith("test_"):
            assert (path.parent / "__init__.py").exists(), path.parent
        edits = re.search(r"^\s*sys\.path\b", path.read_text(), re.M)
        assert not edits, f"{path}: edits sys.path"


def test_groups_reach_the_workers(request):
    """pytest-xdist knows a group by a suffix of the test's name; without one it silently spreads the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@meta/test_house.py"), request.node.nodeid


def test_no_folder_of_tests_is_passed_over(request):
    """pytest leaves out folders by name; none of ours may be one of them."""
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.relative_to(ROOT).parts[:-1]}
    for pattern in request.config.getini("norecursedirs"):
        assert not fnmatch.filter(folders, pattern), pattern


def test_environment_variables_are_few_and_ours():
    allowed = {"PYTHONUNBUFFERED"} | TORCHRUN
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in re.findall(r"environ(?:\.get\(|\[)\s*\"(\w+)\"", path.read_text()):
            assert name in allowed, f"{path.relative_to(ROOT)}: {name}"


def test_what_can_go_wrong_in_every_place_is_done_in_one():
    """Terminal, processes, pictures, JSON: how names are quoted, what is on sys.path, which settings count."""
    pipes = {"base/ranks.py", "build/events.py", "build/sharing.py", "build/stage.py", "serve/backend.py"}
    doors = {
        r"(?<![.`\w])print\(": {"base/terminal.py", "engine/build.py"},  # which prints into its stage's log
        r"\brich\.console\b": {"build/console.py"},
        r"\bTextColumn\b": {"build/console.py"},
        r"\bsys\.executable\b": {"base/child.py"},
        r"\bmatplotlib\.pyplot\b": {"evaluate/pictures.py"},
        r"\.load_library\(": {"engine/plugin_lib.py"},
        r"\bst_[mc]time": set(),  # a file counts by its content
        r"\bjson\.loads?\(": {"base/files.py"} | pipes,  # from outside: parse_json
        r"\bpickle\b|\btorch\.load\(": {"checkpoint/locate.py"},  # which refuses them
    }
    for pattern, allowed in doors.items():
        found = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if re.search(pattern, p.read_text())}
        assert found <= allowed, f"{pattern}: {found - allowed}"


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
            case ["svdq-trt", *rest] | ["torchrun", _, _, "--no-python", "svdq-trt", *rest]:
                parse(rest)
            case ["python", "build_engines.py", *rest] | ["torchrun", _, _, "build_engines.py", *rest]:
                parse(["build", *rest])
            case ["python", script, *_]:
                assert (ROOT / script).exists(), line
            case ["pip", "wheel" | "install", *_]:
                continue  # see the test below
            case _:
                assert words[0] in ("source", "tritonserver", "docker"), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_install_what_can_be_installed(document):
    """svdq-trt is on no index, where its name may be anybody's: a source folder or a wheel of ours is named."""
    text = " ".join((ROOT / document).read_text().split())
    extras = {*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"], ""}
    for words in (shlex.split(found) for found in PIP.findall(text)):
        for word in (word for word in words if not word.startswith("-")):
            what, _, named = word.rstrip("]").partition("[")
            if what == "." or what.endswith(".whl"):
                assert what in (".", f"dist/svdq_trt-{__version__}-py3-none-linux_x86_64.whl"), word
                assert set(named.split(",")) <= extras, word
            else:
                assert re.match(r"(?!svdq)\w", what), word
