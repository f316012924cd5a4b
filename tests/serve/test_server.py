"""Repositories that svdq-trt writes, on a real Triton server, asked by tritonclient over HTTP and gRPC."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.harness.serve_toy import toy_answer, toy_feed
from tests.harness.triton_server import ask

PROTOCOLS = ("http", "grpc")


def feed(batch=1, height=8, width=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((batch, 4, height, width)).astype(np.float16),
        "timestep": rng.uniform(0, 999, batch).astype(np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, 77, 128)).astype(np.float16),
        "text_embeds": rng.standard_normal((batch, 64)).astype(np.float32),
        "time_ids": np.full((batch, 6), 64, np.float32),
    }


@pytest.fixture(scope="session")
def direct(engine):
    """The same file in ONNX Runtime, without anything of ours.

    With as many threads as one of the server's two instances has: ONNX Runtime's last bits depend on their number.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // 2)
    session = onnxruntime.InferenceSession(str(engine / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("sizes", [(1, 8, 8), (2, 16, 8), (4, 8, 32)])
def test_answers_are_onnx_runtimes_bit_for_bit(server, direct, protocol, sizes):
    inputs = feed(*sizes)
    got = ask(server, protocol, "tiny", inputs)["out_sample"]
    assert got.dtype == np.float16
    assert np.array_equal(got, direct(inputs))


GOOD = feed()
BAD = {
    "batch out of range": (feed(5), r"shape \[5, 4, 8, 8\], want \[1\.\.4, 4, 8\.\.32, 8\.\.32\]"),
    "height out of range": (feed(1, 4), r"shape \[1, 4, 4, 8\], want"),
    "nothing in it": ({**GOOD, "sample": GOOD["sample"][:0]}, r"shape \[0, 4, 8, 8\], want"),
    "batches that differ": ({**GOOD, "timestep": np.zeros(2, np.float32)}, "batch 2, want 1, as in 'sample'"),
    "a height the network cannot halve": (feed(1, 9), "height 9, want a multiple of 4"),
    "dtype": ({**GOOD, "sample": GOOD["sample"].astype(np.float32)}, "data-type is 'FP32'.* expects 'FP16'"),
    "rank": ({**GOOD, "sample": GOOD["sample"][0]}, "unexpected shape for input 'sample'"),
    "fixed axis": ({**GOOD, "text_embeds": np.zeros((1, 63), np.float32)}, "unexpected shape for input 'text_embeds'"),
    "missing input": ({k: v for k, v in GOOD.items() if k != "timestep"}, "missing required input.*timestep"),
    "unknown input": ({**GOOD, "guidance": GOOD["timestep"]}, "expected 5 inputs but got 6"),
    "misspelt input": ({k.replace("sample", "smaple"): v for k, v in GOOD.items()}, "unexpected .* input 'smaple'"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_succeeds_and_what_is_the_callers_mistake_leave_nothing_in_the_log(server, protocol):
    before = server.log.stat().st_size
    ask(server, protocol, "tiny", GOOD)
    ask(server, protocol, "bf16", toy_feed(dtype="bfloat16"))
    with pytest.raises(InferenceServerException):
        ask(server, protocol, "tiny", feed(5))
    assert server.log.read_bytes()[before:].decode() == ""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", BAD)
def test_bad_request_is_refused_and_the_next_is_served(server, direct, protocol, case):
    inputs, message = BAD[case]
    with pytest.raises(InferenceServerException, match=message):
        ask(server, protocol, "tiny", inputs)
    assert server.alive()
    assert np.array_equal(ask(server, protocol, "tiny", GOOD)["out_sample"], direct(GOOD))


def test_concurrent_requests_good_and_bad(server, direct):
    """Two instances, eight threads: every answer belongs to its own request."""
    inputs = [feed(1 + i % 2, 8, 8 + 8 * (i % 2), seed=i) for i in range(12)]
    wanted = [direct(one) for one in inputs]

    def one(i):
        protocol = ("http", "grpc")[i % 2]
        if i % 3 == 0:
            with pytest.raises(InferenceServerException, match="want"):
                ask(server, protocol, "tiny", feed(5, seed=i))
        return ask(server, protocol, "tiny", inputs[i])["out_sample"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(12)))
    assert all(np.array_equal(got, want) for got, want in zip(answers, wanted, strict=True))


def with_batch_axis(inputs):
    """As a model that merges wants them: Triton has no empty dims, and a batch axis in every input."""
    batch = len(inputs["x"])
    ids = np.repeat(inputs["ids"][None], batch, axis=0)
    return {"x": inputs["x"], "t": inputs["t"].reshape(-1, 1), "ids": ids}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_input_that_images_share_must_be_the_same_for_all(server, protocol):
    sent = with_batch_axis(toy_feed(2) | {"ids": np.zeros(8, np.float16)})
    sent["ids"][1, 3] = 1
    with pytest.raises(InferenceServerException, match="input 'ids': values that differ within the batch"):
        ask(server, protocol, "merged", sent)


def test_a_model_is_warm_when_it_is_ready(server, repository):
    asked = (repository / "warm" / "7" / "asked").read_text()
    assert asked == "[(1, 16), (1, 16)]\n"  # the opt shape: Triton sends a batch of two as two that come together
    inputs = toy_feed() | {"ids": np.ones(8, np.float16)}
    assert np.array_equal(ask(server, "grpc", "warm", with_batch_axis(inputs))["y"], toy_answer(inputs))
    with tritonclient.http.InferenceServerClient(server.http) as client:
        assert client.get_model_metadata("warm")["versions"] == ["7"]


def test_dynamic_batching_merges_requests_and_divides_the_answers(server):
    """Sixteen single images, and among them some that cannot be merged, and bad ones that share the queue."""

    def one(i):
        width = 8 + 8 * (i % 2)
        inputs = toy_feed(1 + i % 3, width, seed=i) | {"ids": np.full(width, i // 8, np.float16)}
        sent = with_batch_axis(inputs)
        if i % 5 == 0:
            bad = {"x": np.zeros((1, 33)), "t": np.ones((1, 1), np.float32), "ids": np.zeros((1, 33))}
            with pytest.raises(InferenceServerException, match=r"shape \[1, 33\], want \[1\.\.4, 8\.\.32\]"):
                ask(server, "grpc", "merged", {n: v if n == "t" else v.astype(np.float16) for n, v in bad.items()})
        return np.array_equal(ask(server, "grpc", "merged", sent)["y"], toy_answer(inputs))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(16)))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        (stats,) = client.get_inference_statistics("merged", as_json=True)["model_stats"]
    assert int(stats["execution_count"]) < int(stats["inference_stats"]["success"]["count"])  # some ran together


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bfloat16_passes_both_ways(server, protocol):
    inputs = toy_feed(2, 16, seed=3, dtype="bfloat16")
    got = ask(server, protocol, "bf16", inputs)["y"]
    assert got.dtype.name == "bfloat16"
    assert np.array_equal(got, toy_answer(inputs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-onnx", "unable to find backend library for backend 'onnxruntime'"),
        ("full", "unable to find backend library for backend 'tensorrt'"),
        ("session", "Session: neither torch nor pycuda is installed, want one of them"),
    ],
)
def test_what_this_server_cannot_run_fails_behind_its_config(server, name, message):
    """Triton takes the config; the backend or the GPU is what is missing, and nothing else takes its place."""
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match=message):
            client.load_model(name)
        assert not client.is_model_ready(name) and client.is_model_ready("tiny")


def test_metadata_is_the_engines(server):
    with tritonclient.http.InferenceServerClient(server.http) as client:
        meta = client.get_model_metadata("tiny")
    assert {i["name"]: (i["datatype"], i["shape"]) for i in meta["inputs"]} == {
        "sample": ("FP16", [-1, 4, -1, -1]),
        "timestep": ("FP32", [-1]),
        "text_embeds": ("FP32", [-1, 64]),
        "encoder_hidden_states": ("FP16", [-1, 77, 128]),
        "time_ids": ("FP32", [-1, 6]),
    }
    (output,) = meta["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("out_sample", "FP16", [-1, 4, -1, -1])
