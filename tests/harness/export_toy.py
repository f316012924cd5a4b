"""What the export tests share: random layers, models of svdq nodes, a small network, SQNR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdq_export.bodies import OPSET
from svdq_export.passes.functions import add_bodies
from svdq_export.schema import register_schemas
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, Activation, Format
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, OpSpec
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.nn.linear import SVDQLinear

DTYPES = {
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float32: ir.DataType.FLOAT,
}


def db(want: Tensor, got: Tensor) -> float:
    """SQNR in dB."""
    noise = (want.double() - got.double()).square().sum().clamp_min(1e-300)
    return float(10 * torch.log10(want.double().square().sum() / noise))


def tensors(fmt: Format, n: int, k: int, r: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Inputs 1 to 7 of an op, random."""
    g = torch.Generator().manual_seed(seed)
    q = numerics.quantize_weight(torch.randn(n, k, generator=g) / k**0.5, fmt, dtype)
    return {
        "qweight": q.qweight,
        "wscale": q.wscale,
        "act_mul": (0.5 + torch.rand(k, generator=g)).to(dtype),
        "lora_down": (torch.randn(r, k, generator=g) / 14).to(dtype),
        "lora_up": torch.randn(n, r, generator=g).to(dtype),
        "bias": torch.randn(n, generator=g).to(dtype),
        "wscale2": q.wscale2,
    }


def svdq(
    fmt: str,
    k: int,
    n: int,
    r: int,
    dtype: torch.dtype,
    activation: Activation = Activation.NONE,
    **attributes: object,
) -> SVDQLinear:
    """A random layer."""
    seed = 7 * n + k + r
    own = tensors(FORMATS[fmt], n, k, r, dtype, seed)
    return SVDQLinear(SvdqWeights(**own, format=FORMATS[fmt], activation=activation, **attributes))  # type: ignore[arg-type]


def random_x(k: int, dtype: torch.dtype, lead: tuple[int, ...] = (2, 9)) -> Tensor:
    """[*lead, K] with outliers, a zero group and tiny values in the first rows."""
    x = torch.randn(*lead, k, generator=torch.Generator().manual_seed(1))
    x[..., 7] *= 60
    rows = x.view(-1, k)
    rows[0, :64], rows[1, 64:128] = 0, 1e-6
    return x.to(dtype)


@dataclass
class SvdqNode:
    """A node to make: its kind, inputs 1 to the last by name, attributes other than the defaults."""

    op: OpSpec
    weights: dict[str, Tensor]
    attributes: dict[str, float] = field(default_factory=dict)


def in_a_row(nodes: Sequence[SvdqNode], rank: int) -> ir.Model:
    """A graph of svdq nodes called layer0, layer1, ..., and their bodies.

    bf16 inputs and outputs are cast from and to f32, as numpy lacks bf16.
    """
    register_schemas()
    dtype = DTYPES[next(t.dtype for name, t in nodes[0].weights.items() if name.endswith("bias"))]
    outer = ir.DataType.FLOAT if dtype == ir.DataType.BFLOAT16 else dtype
    lead = [f"d{i}" for i in range(rank - 1)]
    k = 2 * next(t for name, t in nodes[0].weights.items() if name.endswith("qweight")).shape[1]
    x = ir.Value(name="x", type=ir.TensorType(outer), shape=ir.Shape([*lead, k]))
    made, constants = [ir.node("Cast", [x], attributes={"to": dtype.value}, name="in")], []
    for i, one in enumerate(nodes):
        own = []
        for spec in one.op.inputs[1:]:
            tensor: Any = ir.tensor(one.weights[spec.name], name=f"layer{i}.{spec.name}")
            kind = ir.TensorType(tensor.dtype)
            own.append(ir.Value(name=tensor.name, type=kind, shape=tensor.shape, const_value=tensor))
        attributes = {a.name: int(a.default) if a.kind == "int" else a.default for a in one.op.attributes}
        attributes |= {"group_size": one.op.format.weight_group, **one.attributes}
        made.append(
            ir.node(
                one.op.op_type,
                [made[-1].outputs[0], *own],
                domain=DOMAIN,
                name=f"layer{i}",
                attributes=attributes | {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE},
            )
        )
        last = one.op.linears[-1]
        n = last.activation.n_out(one.weights[last.prefix + "qweight"].shape[0])
        y = made[-1].outputs[0]
        y.name, y.type, y.shape = f"y{i}", ir.TensorType(dtype), ir.Shape([*lead, n])
        constants += own
    made.append(ir.node("Cast", [made[-1].outputs[0]], attributes={"to": outer.value}, name="out"))
    y = made[-1].outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(outer), ir.Shape([*lead, n])
    graph = ir.Graph([x], [y], nodes=made, initializers=constants, name="row")
    graph.opset_imports.update({"": OPSET, DOMAIN: 1})
    model = ir.Model(graph, ir_version=10)
    add_bodies(model)
    return model


def one_node(
    op: OpSpec, weights: dict[str, Tensor], rank: int, act_unsigned: int = 0, act_shift: float = 0.0
) -> ir.Model:
    """A graph of one linear's node and its body."""
    return in_a_row([SvdqNode(op, weights, {"act_unsigned": act_unsigned, "act_shift": act_shift})], rank)


def session(model: bytes | str) -> ort.InferenceSession:
    """ONNX Runtime on the CPU, quiet."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def runner(model: ir.Model) -> Callable[[Tensor], Tensor]:
    """x -> y in x's dtype through ONNX Runtime."""
    live = session(ir.to_proto(model).SerializeToString())

    def run(x: Tensor) -> Tensor:
        feed = x.float() if x.dtype == torch.bfloat16 else x
        return torch.from_numpy(live.run(None, {"x": feed.numpy()})[0]).to(x.dtype)

    return run


class Attention(nn.Module):
    """Quantized q/k/v on the raw input, plain attention."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.to_qkv = svdq("int4", 128, 384, 16, dtype)
        self.to_out = svdq("w4a16", 128, 128, 0, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 128] -> same."""
        b, t, _ = x.shape
        q, k, v = (h.view(b, t, 4, 32).transpose(1, 2) for h in self.to_qkv(x).chunk(3, dim=-1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 128))


class Toy(nn.Module):
    """A convolution, attention, GEGLU and every format.

    Layers that quantize activations read the graph's input or a constant multiple of it, so that a last-bit
    difference between two runtimes flips no code and outputs compare closely.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Attention(dtype), Attention(dtype)])
        self.ff1 = svdq("w4a16", 128, 512, 16, dtype, Activation.GEGLU)
        self.ff2 = svdq("w4a16", 256, 128, 16, dtype)
        self.up = svdq("nvfp4", 128, 128, 16, dtype, Activation.SILU)
        self.down = svdq("int4", 128, 128, 0, dtype, act_unsigned=True, act_shift=0.171875)
        self.time = svdq("w4a8", 64, 128, 0, dtype)
        self.conv = nn.Conv2d(128, 8, 3, padding=1, dtype=dtype)
        self.norm = nn.LayerNorm(128, dtype=dtype)
        self.proj = nn.Linear(128, 128, dtype=dtype)

    def forward(self, sample: Tensor, emb: Tensor) -> Tensor:
        """[B, 128, H, W], [B, 64] -> [B, 8, H, W]."""
        b, c, h, w = sample.shape
        tokens = sample.flatten(2).transpose(1, 2)
        x = tokens + self.time(emb)[:, None]
        for block in self.blocks:
            x = x + block(tokens)
        x = x + self.up(tokens) + self.down(tokens) + self.down(tokens * 0.5)
        x = x + self.ff2(self.ff1(self.norm(x)))
        return self.conv(self.proj(x).transpose(1, 2).reshape(b, c, h, w))


TOY_DYNAMIC = {"sample": {0: "batch", 2: "height", 3: "width"}, "emb": {0: "batch"}}


def toy_inputs(dtype: torch.dtype, b: int = 2, h: int = 8, w: int = 6) -> dict[str, Tensor]:
    """Inputs for Toy."""
    g = torch.Generator().manual_seed(b + h + w)
    return {
        "sample": torch.randn(b, 128, h, w, generator=g).to(dtype),
        "emb": torch.randn(b, 64, generator=g).to(dtype),
    }


def run_file(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """The first output of an .onnx file."""
    return torch.from_numpy(session(str(path)).run(None, {k: v.numpy() for k, v in inputs.items()})[0])
