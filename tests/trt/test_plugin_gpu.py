"""The plugin's life in TensorRT on a GPU: deserialization, contexts, profiles, shapes, streams, NaN.

Every engine is one or two nodes between element-wise layers, built for sm_89: TensorRT-RTX compiles it for the GPU
present. What the numbers are is proven elsewhere (tests/gpu); here the same ones must come out whatever TensorRT does.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from svdq_trt.contract import ops
from svdq_trt.contract.formats import Activation

K, N = 256, 128
PLAIN = [o for o in ops.LINEAR_OPS.values() if o.activation is Activation.NONE]
RANGE = {"min": (1, 1, K), "opt": (1, 64, K), "max": (1, 600, K)}


def scales(k, n):
    """Scales as e4m3 bytes: random bytes would hold NaN."""
    return np.random.default_rng(2).integers(8, 100, (k // 64, n, 4)).astype(np.int8)


def dynamic(**changes):
    return {"shapes": RANGE | changes}


def weights_of(op_type):
    return {"wscale": scales(K, N)} if "NVFP4" in op_type else {}


def mlp_weights(op, n):
    """The constants of each linear that are not to be random: fc1's y then is of order 1, so that nothing overflows."""
    small = {"wscale2": np.full(n[0], 0.01, np.float32), "lora_up": np.full((n[0], 16), 0.01, np.float16)}
    if op.format.name == "nvfp4":
        return small | {"wscale": scales(K, n[0])}, {"wscale": scales(N, n[1])}
    return small, {}


@pytest.fixture(scope="module")
def runtime(tensorrt):
    """Plan -> engine, in the TensorRT that built it."""
    if not torch.cuda.is_available():
        if "gpu" in os.environ.get("SVDQ_REQUIRE", "").split(","):
            pytest.fail("SVDQ_REQUIRE=gpu, but no CUDA device")
        pytest.skip("needs a CUDA GPU")
    torch.zeros(1, device="cuda")  # the context that TensorRT uses
    made = tensorrt.module.Runtime(tensorrt.logger)

    def deserialize(built):
        assert built.plan is not None, built.errors
        engine = made.deserialize_cuda_engine(built.plan)
        assert engine is not None, tensorrt.messages[-3:]
        return engine

    return deserialize


@pytest.fixture
def engine(tensorrt, runtime, make_graph, node, request):
    """A w4a8 node, [1, 1..600, K] -> [1, M, N]; another op by indirect parameter."""
    op_type = getattr(request, "param", "SVDQLinearW4A8")
    return runtime(tensorrt.build(make_graph([node(op_type, n=N, weights=weights_of(op_type))], k=K), **dynamic()))


class Context:
    """One execution context with its own stream; `run` waits."""

    def __init__(self, engine, profile=0):
        self.context, self.stream = engine.create_execution_context(), torch.cuda.Stream()
        assert self.context is not None
        if profile:
            self.use(profile)

    def use(self, profile):
        assert self.context.set_optimization_profile_async(profile, self.stream.cuda_stream)
        self.stream.synchronize()

    def run(self, x):
        with torch.cuda.stream(self.stream):
            assert self.context.set_input_shape("in", tuple(x.shape))
            y = torch.full(tuple(self.context.get_tensor_shape("out")), float("nan"), dtype=x.dtype, device="cuda")
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            self.context.set_tensor_address("in", x.data_ptr())
            self.context.set_tensor_address("out", y.data_ptr())
            assert self.context.execute_async_v3(self.stream.cuda_stream)
        self.stream.synchronize()
        return y


def tokens(m, seed=0, dtype=torch.float16):
    x = torch.randn((1, m, K), generator=torch.Generator().manual_seed(seed)).to(dtype)
    x = x.cuda()
    torch.cuda.synchronize()
    return x


def test_a_plan_makes_the_same_engine_twice(tensorrt, runtime, make_graph, node):
    """The attributes come back from the plan's fields: with another act_shift the result is another."""
    outputs = []
    for shift in (0.171875, 0.171875, 0.5):
        attributes = {"act_unsigned": 1, "act_shift": shift}
        graph = make_graph([node("SVDQLinearInt4", n=N, attributes=attributes)], k=K)
        built = tensorrt.build(graph, **dynamic())
        outputs += [Context(runtime(built)).run(tokens(33)), Context(runtime(built)).run(tokens(33))]
    assert torch.isfinite(outputs[0]).all()
    assert all(torch.equal(outputs[0], y) for y in outputs[1:4])
    assert torch.equal(outputs[4], outputs[5]) and not torch.equal(outputs[0], outputs[4])


@pytest.mark.parametrize("engine", [o.op_type for o in PLAIN], indirect=True)
def test_shapes_change_back_and_forth(engine):
    context, first = Context(engine), {}
    for m in (1, 7, 64, 300, 600, 64, 1, 600, 7):
        y = context.run(tokens(m))
        assert torch.isfinite(y).all() and y.shape == (1, m, N)
        assert torch.equal(first.setdefault(m, y), y), m
    assert not context.context.set_input_shape("in", (1, 601, K))  # outside the profile
    assert torch.equal(context.run(tokens(7)), first[7])


def test_many_contexts_in_threads_on_their_own_streams(engine):
    sizes = (1, 17, 64, 100, 255, 300, 511, 600)
    alone = Context(engine)
    want = {m: alone.run(tokens(m, seed=m)) for m in sizes}
    contexts, wrong = [Context(engine) for _ in sizes], []

    def work(index):
        for i in range(30):
            m = sizes[(index + i) % len(sizes)]
            if not torch.equal(contexts[index].run(tokens(m, seed=m)), want[m]):
                wrong.append((index, m))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(contexts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_contexts_outlive_each_other_and_an_engine_is_made_again(tensorrt, runtime, make_graph, node):
    built = tensorrt.build(make_graph([node("SVDQLinearInt4", n=N)], k=K), **dynamic())
    want = None
    for _ in range(5):
        engine = runtime(built)
        first, second = Context(engine), Context(engine)
        y = first.run(tokens(50))
        del first
        assert torch.equal(second.run(tokens(50)), y)
        assert want is None or torch.equal(y, want)
        want = y


def test_profiles_switch(tensorrt, runtime, make_graph, node):
    profiles = [RANGE | {"max": (1, 64, K)}, RANGE | {"min": (1, 32, K), "opt": (1, 512, K)}]
    graph = make_graph([node("SVDQLinearW4A8", n=N), node("SVDQLinearInt4Gelu", n=N)], k=K)
    engine = runtime(tensorrt.build(graph, shapes=profiles))
    assert engine.num_optimization_profiles == 2
    context = Context(engine)
    small = context.run(tokens(48))
    context.use(1)
    large = context.run(tokens(300))
    assert torch.equal(context.run(tokens(48)), small)
    context.use(0)
    assert torch.equal(context.run(tokens(48)), small)
    assert torch.equal(Context(engine, profile=1).run(tokens(300)), large)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("op", PLAIN, ids=lambda o: o.op_type)
def test_nan_and_inf_stay_in_their_rows(tensorrt, runtime, make_graph, node, op, dtype):
    torch_dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    graph = make_graph([node(op.op_type, n=N, weights=weights_of(op.op_type))], k=K, dtype=dtype)
    context = Context(runtime(tensorrt.build(graph, **dynamic())))
    for m in (9, 140):
        x = tokens(m, dtype=torch_dtype)
        want = context.run(x)
        bad = {0: float("nan"), 3: float("inf"), m - 1: -float("inf")}
        for row, value in bad.items():
            x[0, row, (37 * row) % K] = value
        torch.cuda.synchronize()
        got = context.run(x)
        good = [row for row in range(m) if row not in bad]
        assert torch.isnan(got[0, list(bad)]).all()
        assert torch.equal(got[0, good], want[0, good])


@pytest.mark.parametrize("op", ops.MLP_OPS.values(), ids=lambda o: o.op_type)
def test_two_linears_in_one_node_give_what_two_nodes_give(tensorrt, runtime, make_graph, node, op):
    """Bit for bit but for fc2's low-rank branch, whose t may be summed in another order.

    The weights are the same, as they are drawn in the order of the inputs.
    """
    n = (N * op.activation.rows_per_feature, N)
    by_linear = mlp_weights(op, n)
    for rank in (0, 16):
        r = (16, rank)
        both = {
            linear.prefix + name: w
            for linear, own in zip(op.linears, by_linear, strict=True)
            for name, w in own.items()
        }
        one = [node(op.op_type, n=n, r=r, weights=both)]
        two = [
            node(ops.op_type(op.format, linear.activation), n=n[i], r=r[i], weights=by_linear[i])
            for i, linear in enumerate(op.linears)
        ]
        got, want = (Context(runtime(tensorrt.build(make_graph(nodes, k=K), **dynamic()))) for nodes in (one, two))
        for m in (1, 7, 64, 300, 600, 64):
            x = tokens(m)
            if m > 64:
                x[0, m - 1, 5] = float("nan")
                torch.cuda.synchronize()
            a, b = got.run(x), want.run(x)
            assert torch.equal(a.isnan(), b.isnan()) and b.isnan().any(-1).sum() == (m > 64)
            a, b = a.nan_to_num().double(), b.nan_to_num().double()
            noise = (a - b).square().sum() / b.square().sum()
            assert noise < (1e-6 if rank else 1e-300), (m, rank, float(noise))  # 1e-6: flips of t's last bit


def test_cuda_graph_of_a_context(engine):
    context, x = Context(engine), tokens(200)
    want = context.run(x)
    y = torch.zeros_like(want)
    context.context.set_tensor_address("out", y.data_ptr())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=context.stream, capture_error_mode="thread_local"):
        assert context.context.execute_async_v3(context.stream.cuda_stream)
    other = tokens(200, seed=5)
    for source in (x.clone(), other, x.clone()):
        x.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, want) == (source is not other)


def test_random_weights_are_used(tensorrt, runtime, make_graph, node):
    """Two nodes that differ in one code of their weights give results that differ in one column."""
    codes = np.random.default_rng(1).integers(-100, 100, (N, K // 2)).astype(np.int8)
    changed = codes.copy()
    changed[5, 7] ^= 0x11
    first, second = (
        Context(
            runtime(tensorrt.build(make_graph([node("SVDQLinearInt4", n=N, weights={"qweight": w})], k=K), **dynamic()))
        ).run(tokens(20))
        for w in (codes, changed)
    )
    different = (first != second).any(dim=1)[0]
    assert different[5] and different.sum() == 1
