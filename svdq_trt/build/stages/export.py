"""Stage: svdq.safetensors -> model.onnx (+ data), from the artifact alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, Stage
from svdq_trt.contract.attention import ATTENTION_OPS
from svdq_trt.contract.step_cache import PIECES

if TYPE_CHECKING:
    from svdq_export.exporter import OnnxInfo
    from svdq_trt.build.work import Work

FILE = "model.onnx"
SLOTS_FILE = "lora_slots.safetensors"  # svdq_trt.lora.slots.FILE, which would import torch here


def piece_files(step_cache: bool) -> tuple[str, ...]:
    """Names of the files of the graph's pieces; none where it is not cut."""
    return tuple(f"{piece}.onnx" for piece in PIECES) if step_cache else ()


@dataclass(frozen=True)
class Slots:
    """LoRA slots of a graph: rank per linear, and number of inputs."""

    rank: int
    inputs: int


@dataclass(frozen=True)
class Exported(Result):
    """An ONNX file: its svdq nodes and op types, all its nodes, bytes of its data, its LoRA slots."""

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    node_count: int
    data_bytes: int
    slots: Slots | None = None

    @property
    def attention(self) -> Literal["plugin", "tensorrt"]:
        """Whose the attentions are: "plugin" where any is a node of ours."""
        return "plugin" if ATTENTION_OPS.keys() & set(self.op_types) else "tensorrt"

    @classmethod
    def of(cls, info: OnnxInfo, slots: Slots | None = None) -> Exported:
        """The result from the exporter's figures."""
        return cls(tuple(info.svdq_nodes), tuple(info.op_types), info.node_count, info.data_bytes, slots)


@dataclass(frozen=True)
class Export(Stage[Exported]):
    """The quantized model as ONNX.

    Attributes:
        ranges: symbol (batch, height, ...) -> (min, max); a size with min = max becomes static.
        lora_slots: rank per linear to fill at run time; with it, SLOTS_FILE is written too. 0: none.
        fuse_mlp: one op for two linears with GELU, GEGLU or SwiGLU between them.
        attention: head sizes of the attentions that are the plugin's; the others are TensorRT's.
        step_cache: the graph is cut into pieces, which are written too.
    """

    name = "export"
    result = Exported

    model: str
    artifact: File
    ranges: dict[str, tuple[int, int]]
    lora_slots: int
    fuse_mlp: bool
    format: str
    attention: tuple[int, ...] = ()
    step_cache: bool = False

    @classmethod
    def of(cls, work: Work, fmt: str, attention: tuple[int, ...], artifact: File) -> Export:
        """The stage for one graph of a build."""
        c, out = work.config, artifact.path.with_name(FILE)
        return cls(
            work.spec.source,
            artifact,
            work.ranges(),
            c.lora_slots,
            c.fuse_mlp,
            fmt,
            attention,
            c.step_cache,
            out=out,
        )

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"export    {self.format} ONNX"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the graph, its data, with slots SLOTS_FILE, and its pieces."""
        slots = (SLOTS_FILE,) if self.lora_slots else ()
        return (self.out.name, f"{self.out.name}.data", *slots, *piece_files(self.step_cache))

    def imports(self) -> None:
        """Import the exporter and the model's class."""
        from svdq_trt.build.graph import import_exporter
        from svdq_trt.models import get_model

        import_exporter()
        get_model(self.model).model_class()

    def run(self, progress: Progress) -> Exported:
        """Restore the quantized model and export it."""
        from svdq_trt.artifact import svdq_file
        from svdq_trt.build.graph import export_model
        from svdq_trt.lora import slots
        from svdq_trt.lora.apply import layer_shapes, node_rows
        from svdq_trt.models import get_model
        from svdq_trt.models.first_block import find_cuts
        from svdq_trt.nn.restore import restore_model

        spec = get_model(self.model)
        progress(0, 1, f"opening {self.artifact.path.name}")
        loaded = svdq_file.load(self.artifact.path)
        module, table = restore_model(loaded, spec), None
        if self.lora_slots:
            rows = list(node_rows(loaded.nodes, spec, loaded.meta.get("skip", ())).values())
            shapes = layer_shapes(spec)
            table = slots.install_slots(module, rows, spec.source, spec.torch_dtype, self.lora_slots, shapes)
        inputs = table.input_names() if table else ()
        info = export_model(
            module,
            spec,
            self.ranges,
            self.out,
            progress,
            runtime_inputs=inputs,
            fuse_mlp=self.fuse_mlp,
            attention=self.attention,
            cuts=find_cuts(spec) if self.step_cache else None,
        )
        if table is None:
            return Exported.of(info)
        slots.save_table(self.out.with_name(slots.FILE), table, slots.base_factors(module, table))
        return Exported.of(info, Slots(table.rank, len(inputs)))
