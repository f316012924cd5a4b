"""An engine of sdxl-tiny in TensorRT on a GPU, through Session.

SVDQ_TEST_ENGINE names the folder, as `svdq-trt build --model sdxl-tiny --random-weights 0` writes it;
SVDQ_TEST_HOST_CODE=1 runs the folder's plugin library.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError
from svdq_trt.models import get_model

OPTIONS = {"allow_arch_mismatch": True, "allow_host_code": os.environ.get("SVDQ_TEST_HOST_CODE") == "1"}
SIZES = [
    {"batch": 1, "height": 64, "width": 64},
    {"batch": 2, "height": 128, "width": 128},
    {"batch": 4, "height": 256, "width": 64},
]


@pytest.fixture(scope="module")
def session(folder):
    from svdq_trt.runtime import Session

    with Session(folder, **OPTIONS) as opened:
        yield opened


def feed(device="cuda", seed=3, **sizes):
    spec = get_model("sdxl-tiny")
    tensors = spec.example_inputs(**(sizes or SIZES[1]), seed=seed)
    return {io.name: t.to(device) for io, t in zip(spec.inputs, tensors, strict=True)}


@pytest.fixture(scope="module")
def module(folder):
    from svdq_trt.artifact import svdq_file
    from svdq_trt.nn.restore import restore_model

    spec = get_model("sdxl-tiny")
    return spec.wrap(restore_model(svdq_file.load(folder / "svdq.safetensors"), spec))


@pytest.mark.parametrize("sizes", SIZES)
def test_engine_is_the_torch_module(session, module, sizes):
    """The same artifact in torch on the CPU.

    Sums in another order move some activations over a rounding boundary. With 8 bits that stays as small as the
    FP16 engine's own distance from torch (measured 43 dB, FP16 42); with 4 bits a code is a seventh of its
    group's maximum, and the difference grows through the layers to near the quantization error (25 to 27 dB).
    """
    with torch.no_grad():
        want = module(*feed("cpu", **sizes).values()).double()
    got = session.run(feed(**sizes))["out_sample"].cpu().double()
    sqnr = 10 * torch.log10(want.square().sum() / (want - got).square().sum())
    least = {"w4a8": 35, "int4": 20, "nvfp4": 20}[session.manifest.format]
    assert got.shape == want.shape and sqnr > least, f"{sqnr:.1f} dB"


@pytest.mark.parametrize("graph", [False, True])
def test_weights_in_host_memory_change_time_and_memory_alone(folder, session, graph):
    from svdq_trt.runtime import Session

    want = {name: value.clone() for name, value in session.run(feed()).items()}
    free = torch.cuda.mem_get_info()[0]
    with Session(folder, weight_budget=0, cuda_graph=graph, **OPTIONS) as small:
        taken = free - torch.cuda.mem_get_info()[0]
        for _ in range(3):  # the second is captured, the third replayed
            got = small.run(feed())
        assert all(torch.equal(got[name], value) for name, value in want.items())
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    with Session(folder, **OPTIONS):
        assert taken < free - torch.cuda.mem_get_info()[0]


def test_sessions_share_memory_for_activations(folder, session):
    from svdq_trt.runtime import Session
    from svdq_trt.runtime.activations import SharedActivations

    want = {sizes["batch"]: session.run(feed(**sizes))["out_sample"].clone() for sizes in SIZES[:2]}
    shared = SharedActivations()
    one = Session(folder, cuda_graph=True, activations=shared, **OPTIONS)
    with one, Session(folder, activations=shared, **OPTIONS) as other:
        for turn in range(4):  # of `one` the second run is captured, the others are replayed
            if turn == 3:  # as a larger engine would do
                assert shared.number == 1
                shared.reserve(one._memory, shared.bytes + 1)
            for runner, sizes in ((one, SIZES[1]), (other, SIZES[0])):
                assert torch.equal(runner.run(feed(**sizes))["out_sample"], want[sizes["batch"]])


def test_numpy_and_torch_agree_bit_for_bit(session):
    inputs = feed()
    want = session.run(inputs)["out_sample"].cpu().numpy()
    got = session.run({k: v.cpu().numpy() for k, v in inputs.items()})["out_sample"]
    assert isinstance(got, np.ndarray) and np.array_equal(got, want)


def test_runs_repeat_bit_for_bit_also_after_another_shape(session):
    first = session.run(feed())["out_sample"].clone()
    session.run(feed(**SIZES[2]))
    assert torch.equal(session.run(feed())["out_sample"], first)


def test_follows_the_callers_stream_without_synchronization(session):
    want = session.run(feed())["out_sample"].clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs = feed()
        late = {k: torch.zeros_like(v) for k, v in inputs.items()}
        torch.cuda._sleep(50_000_000)  # the real values come only after this
        for name, value in inputs.items():
            late[name].copy_(value)
        got = session.run(late)["out_sample"].clone()
    stream.synchronize()
    assert torch.equal(got, want)


def test_cuda_graph_gives_the_same_bits(folder, session):
    from svdq_trt.runtime import Session

    with Session(folder, cuda_graph=True, **OPTIONS) as graphed:
        for seed in (3, 4, 5):  # run, capture, replay: new values each time
            want = session.run(feed(seed=seed))["out_sample"].clone()
            assert torch.equal(graphed.run(feed(seed=seed))["out_sample"], want)
        want = session.run(feed(**SIZES[0]))["out_sample"].clone()
        assert torch.equal(graphed.run(feed(**SIZES[0]))["out_sample"], want)


def test_refuses_what_is_outside_the_profile_and_goes_on(session):
    want = session.run(feed())["out_sample"].clone()
    with pytest.raises(ShapeError, match="input 'sample': shape"):
        session.run(feed(batch=5, height=128, width=128))
    with pytest.raises(ShapeError, match="float64, want float16"):
        session.run(feed() | {"sample": feed()["sample"].double()})
    with pytest.raises(SvdqError, match="inputs: shapes"):
        session.run(feed() | {"timestep": torch.zeros(1, device="cuda")})  # batch 2 everywhere else
    assert torch.equal(session.run(feed())["out_sample"], want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_stay_in_their_row_of_the_batch(session, value):
    want = session.run(feed())["out_sample"].clone()
    inputs = feed()
    inputs["sample"][1, 0, 3, 5] = value
    got = session.run(inputs)["out_sample"]
    assert torch.equal(got[0], want[0])
    assert not torch.isfinite(got[1]).all()
    assert torch.equal(session.run(feed())["out_sample"], want)  # and not in the next run


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_pycuda_gives_the_same_bits_without_torch(folder, session, tmp_path, cuda_graph):
    """The process never imports torch: two shapes, three runs of each."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed")
    wants = [
        {k: v.cpu().numpy() for k, v in feed(seed=seed, **sizes).items()} for sizes in SIZES[:2] for seed in (3, 4, 5)
    ]
    for i, inputs in enumerate(wants):
        np.savez(tmp_path / f"{i}.npz", **inputs)
    code = f"""
import sys
import numpy as np
from svdq_trt.runtime import Session
with Session({str(folder)!r}, cuda_graph={cuda_graph}, **{OPTIONS}) as session:
    assert session.memory == "pycuda"
    for i in range({len(wants)}):
        inputs = dict(np.load({str(tmp_path)!r} + f"/{{i}}.npz"))
        np.save({str(tmp_path)!r} + f"/{{i}}.npy", session.run(inputs)["out_sample"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    for i, inputs in enumerate(wants):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), session.run(inputs)["out_sample"]), i


def test_pycuda_session_beside_torch_refuses_tensors(folder, session):
    from svdq_trt.base.errors import UnsupportedError
    from svdq_trt.runtime import Session

    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed")
    inputs = {k: v.cpu().numpy() for k, v in feed().items()}
    with Session(folder, memory="pycuda", **OPTIONS) as other:
        assert np.array_equal(other.run(inputs)["out_sample"], session.run(inputs)["out_sample"])
        with pytest.raises(UnsupportedError, match="a torch tensor to a session on pycuda"):
            other.run(feed())
        assert np.array_equal(other.run(inputs)["out_sample"], session.run(inputs)["out_sample"])


def test_closed_session_says_so(folder):
    from svdq_trt.runtime import Session

    opened = Session(folder, **OPTIONS)
    assert set(opened.seconds) == {"check", "load", "context"} and min(opened.seconds.values()) > 0
    opened.close()
    opened.close()
    with pytest.raises(SvdqError, match="a closed session"):
        opened.run(feed())


def test_attached_to_a_pipeline(session):
    """Calls like StableDiffusionXLPipeline's to its UNet, on CUDA tensors."""
    from types import SimpleNamespace

    from svdq_trt.runtime import attach

    unet = attach(SimpleNamespace(components={"unet": None}, unet=None), session).unet
    inputs = feed()
    added = {name: inputs[name].half() for name in ("text_embeds", "time_ids")}
    step = torch.tensor(float(inputs["timestep"][0]), device="cuda")
    (got,) = unet(inputs["sample"], step, inputs["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False)
    exact = inputs | {name: value.float() for name, value in added.items()}
    assert unet.device == torch.device("cuda", 0) and got.is_cuda
    assert torch.equal(got, session.run(exact)["out_sample"])


def test_diff_runs_the_plan_in_tensorrt(folder, session, tmp_path, capsys):
    """Against itself: no noise at all."""
    from svdq_trt.cli import main

    options = ["--allow-arch-mismatch", *(["--allow-host-code"] if OPTIONS["allow_host_code"] else [])]
    files = ["--json", str(tmp_path / "d.json"), "--plot", str(tmp_path / "d.png")]
    sides = [str(folder), "--against", str(folder / "model.plan")]
    assert main(["diff", *sides, "--min-sqnr", "90", *options, *files]) == 0
    assert f"{folder / 'model.plan'} in TensorRT" in capsys.readouterr().out
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["candidate"]["runtime"] == found["reference"]["runtime"] == "TensorRT"
    assert found["outputs"][0]["max_abs"] == 0 and found["outputs"][0]["sqnr_db"] is None


def test_damaged_plan_is_refused(folder, tmp_path):
    from svdq_trt.runtime import Session

    for name in ("manifest.json", "model.plan", json.loads((folder / "manifest.json").read_text())["plugin"]["file"]):
        shutil.copy(folder / name, tmp_path / name)
    plan = tmp_path / "model.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(ArtifactError, match="another SHA-256"):
        Session(tmp_path, **OPTIONS)


def test_second_opening_compiles_nothing(folder, session):
    from svdq_trt.runtime import Session

    session.run(feed())
    if session.parts[0]._cache is None:
        pytest.skip("this TensorRT has no runtime cache")
    with Session(folder, **OPTIONS) as again:
        assert not again.compiled
        assert torch.equal(again.run(feed())["out_sample"], session.run(feed())["out_sample"])
