"""Stage: a quantized checkpoint, ours or another tool's -> svdq.safetensors."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svdq_trt.artifact.manifest import LeftOut
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import UNKEYED, File, Stage
from svdq_trt.build.stages.quantize import FILE, Quantized
from svdq_trt.build.stages.weights import Weights

if TYPE_CHECKING:
    from svdq_trt.build.work import Work


@dataclass(frozen=True)
class TakeQuantized(Stage[Quantized]):
    """``--quantized`` instead of the quantizer: the same artifact, recorded under the same name."""

    name = "quantize"
    result = Quantized

    model: str
    source: File
    weights: Weights | None = field(default=None, kw_only=True)  # 16 bit, where the source has quantized layers alone
    format: str = field(default="", kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, fmt: str, source: File) -> TakeQuantized:
        """The stage for a build with ``--quantized``."""
        weights = work.weights if work.import_needs_weights else None
        return cls(work.spec.source, source, weights=weights, format=fmt, out=work.quantized_folder(fmt) / FILE)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"import    {self.format}"

    def run(self, progress: Progress) -> Quantized:
        """Import the checkpoint, or copy our own artifact, and check the result."""
        from svdq_trt.artifact import svdq_file
        from svdq_trt.checkpoint import open_weights
        from svdq_trt.interop import describe, import_checkpoint
        from svdq_trt.models import get_model
        from svdq_trt.nn.restore import restore_model

        spec, path = get_model(self.model), self.source.path
        progress(0, 2, f"reading {path.name}")
        kept: dict[str, str] = {}
        notes: tuple[str, ...] = ()
        if describe(path, spec).kind == "svdq-trt":
            with atomic_write(self.out) as tmp:
                shutil.copyfile(path / FILE if path.is_dir() else path, tmp)
        else:
            given = self.weights
            rest = None if given is None else open_weights(spec, given.checkpoint, given.random_weights)
            report = import_checkpoint(path, spec, self.out, rest)
            kept, notes = report.kept, report.notes
        progress(1, 2, "checking the artifact")
        loaded = svdq_file.load(self.out)
        if loaded.meta.get("model") != spec.weights:
            raise ArtifactError(str(path), f"a model '{loaded.meta.get('model')}'", spec.weights)
        rank = loaded.meta.get("rank")
        if type(rank) is not int or rank < 0:
            raise ArtifactError(str(path), f"rank {rank!r}", "the largest R of its nodes")
        restore_model(loaded, spec)
        module = spec.build(device="meta")
        recipe = spec.recipe(module, tuple(loaded.meta.get("skip", ())))
        quantized = {member for node in loaded.nodes for member in node.members}
        reasons = {k.name: k.reason for k in recipe.kept}
        reasons |= {
            member: kept.get(member, "16 bit in the given checkpoint")
            for group in recipe.groups
            for member in group.members
            if member not in quantized
        }
        known = [n.sqnr_db for n in loaded.nodes if n.sqnr_db == n.sqnr_db]
        return Quantized(
            fp16_weight_bytes=sum(t.numel() * 2 for t in module.parameters()),
            quantized_weight_bytes=self.out.stat().st_size,
            kept_16bit=tuple(LeftOut(name, reason) for name, reason in reasons.items()),
            mean_sqnr_db=round(sum(known) / len(known), 2) if known else None,
            nodes=len(loaded.nodes),
            rank=rank,
            notes=tuple(notes),
        )
