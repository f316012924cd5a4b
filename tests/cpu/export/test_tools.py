"""Our ONNX file through the tools that people run over ONNX files: valid afterwards, and the same output bit for bit.

onnx-graphsurgeon, onnxslim and onnxsim are in the extra `dev`.
"""

from __future__ import annotations

import subprocess
import sys

import onnx
import onnx.compose
import onnx.inliner
import onnxruntime as ort
import pytest
import torch
from onnx import version_converter

from svdq_export.bodies import build_function
from svdq_trt.contract.ops import DOMAIN, OPS
from tests.harness.export_toy import run_file, toy_inputs

INPUTS = toy_inputs(torch.float16)


_POLYGRAPHY = "from polygraphy.tools import main; raise SystemExit(main())"


def polygraphy(*args: str) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    subprocess.run([sys.executable, "-c", _POLYGRAPHY, *args], check=True, capture_output=True)


def sanitize(path, out):
    data = ["--save-external-data", f"{out.name}.data"]
    polygraphy("surgeon", "sanitize", "--fold-constants", str(path), "-o", str(out), *data)


def extract(path, out):
    ends = ["--inputs", "sample:auto:auto", "emb:auto:auto", "--outputs", "out:auto"]
    polygraphy("surgeon", "extract", str(path), "-o", str(out), *ends)


def graphsurgeon(path, out):
    gs = pytest.importorskip("onnx_graphsurgeon")
    graph = gs.import_onnx(onnx.load(path))
    onnx.save(gs.export_onnx(graph.fold_constants().cleanup().toposort()), out)


def onnxslim(path, out):
    onnx.save(pytest.importorskip("onnxslim").slim(str(path)), out)


def onnxsim(path, out):
    model, same = pytest.importorskip("onnxsim").simplify(onnx.load(path))
    assert same
    onnx.save(model, out)


def inliner(path, out):
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(path)), out)


def prefix(path, out):
    onnx.save(onnx.compose.add_prefix(onnx.load(path), "a_"), out)


def prefix_of_tensors(path, out):
    onnx.save(onnx.compose.add_prefix(onnx.load(path), "a_", rename_functions=False), out)


def merge(path, out):
    text = "g (float16[b, 8, h, w] i) => (float16[b, 8, h, w] o) {o = Identity(i)}"
    after = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {text}')
    onnx.save(onnx.compose.merge_models(onnx.load(path), after, [("out", "i")]), out)


def extract_model(path, out):
    onnx.utils.extract_model(str(path), str(out), list(INPUTS), ["out"])


def ort_saved(path, out):
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(out), 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def fixed_shapes(path, out):
    from onnx.shape_inference import infer_shapes_path
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    model = onnx.load(path, load_external_data=False)
    for name, size in (("batch", 2), ("height", 8), ("width", 6)):
        make_dim_param_fixed(model.graph, name, size)
    onnx.save(model, out)
    infer_shapes_path(out, out)


KEEP = [sanitize, extract, graphsurgeon, onnxslim, onnxsim, prefix_of_tensors, merge, extract_model, fixed_shapes]
LOSE_NODES = [inliner, prefix, ort_saved]  # for the plugin; ONNX Runtime runs the result


@pytest.mark.parametrize("tool", [*KEEP, *LOSE_NODES], ids=lambda f: f.__name__)
def test_file_is_valid_and_runs_the_same_after(tool, exported, tmp_path):
    _, info, _ = exported
    for part in (info.path, info.path.with_name("toy.onnx.data")):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    out = tmp_path / "out.onnx"
    tool(tmp_path / "toy.onnx", out)
    onnx.checker.check_model(out, full_check=True)
    prefixed = "a_" if tool in (prefix, prefix_of_tensors) else ""
    got = run_file(out, {prefixed + name: value for name, value in INPUTS.items()})
    assert torch.equal(got, run_file(info.path, INPUTS))
    kept = {n.op_type for n in onnx.load(out, load_external_data=False).graph.node if n.domain == DOMAIN}
    assert kept == (set(info.op_types) if tool in KEEP else {f"a_{op}" for op in info.op_types if tool is prefix})


def test_version_converter_still_loses_the_bodies(exported):
    """Documented as such; when this fails, docs/runtime.md has good news to tell."""
    _, info, _ = exported
    model = onnx.load(info.path)
    assert len(model.functions) == len(info.op_types)
    assert not version_converter.convert_version(model, 24).functions


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_constants_of_bodies_say_their_type(op):
    """`value_float` and its kin become float64 in Polygraphy and onnxslim; references to attributes stay."""
    constants = [node for node in build_function(op).all_nodes() if node.op_type == "Constant"]
    assert constants
    for node in constants:
        (attribute,) = node.attributes.values()
        assert attribute.is_ref() or attribute.name == "value"
