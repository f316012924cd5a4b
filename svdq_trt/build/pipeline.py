"""``--pipeline``: engines for the parts of a pipeline beside its denoiser, and pipeline.json over all of them.

<out>/<model>-shared/<part>/         model.onnx(.data) of a part, for every arch
<out>/<model>-sm_89/                 the denoiser's engine, as without --pipeline, and pipeline.json
<out>/<model>-sm_89/<part>/          an engine folder of its own: text_encoder, text_encoder_2, vae_decoder, ...
<out>/t5-xxl-sm_89/                  with --quantize-text: that of T5 in 4 bits, whose files the part's folder has too;
<out>/<model>-text_encoder-sm_89/    or that of a language model
<out>/<model>-sm_89/tokenizer/ ...   copies of what else a run reads
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.artifact.pipeline_file import GraphEntry, PipelineFile
from svdq_trt.base.files import atomic_write, own_folder, sha256
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.folder import place
from svdq_trt.build.made import PartMade
from svdq_trt.build.manifest_data import part_manifest
from svdq_trt.build.pipeline_work import PartWork, PipelineWork
from svdq_trt.build.plans import plan_engine
from svdq_trt.build.stages import export
from svdq_trt.build.stages.export_part import ExportPart


class PartsBuild:
    """Builds the parts of a pipeline beside the engines of its denoiser."""

    def __init__(
        self,
        config: BuildConfig,
        work: PipelineWork,
        shared: Path,
        execution: Execution,
        place: Callable[[Path, Path], None],
    ) -> None:
        """`place` puts a stage's output where it is wanted too."""
        self.config, self.work, self.shared, self.execution, self.place = config, work, shared, execution, place
        self._made: dict[str, PartMade] = {}

    @property
    def room_bytes(self) -> int:
        """Memory that an export takes at most: the module, its constants as they are traced, and the file's."""
        return 3 * max((one.weight_bytes for one in self.work.parts), default=0)

    def graphs(self) -> None:
        """Make model.onnx of every part, in the shared folder."""
        for one in self.work.parts:
            part, costs = one.part, Costs()
            for note in one.identity.notes:
                self.execution.screen.say(note)
            stage = ExportPart(
                **vars(part),
                digest=one.identity.digest,
                ranges=one.sizes.ranges(),
                pipeline=self.work.folder.path,
                variant=self.work.variant,
                random_weights=self.work.random_weights,
                out=self.shared / part.name / export.FILE,
            )
            self._made[part.name] = PartMade(stage.key, self.execution.run(stage, costs), costs)

    def engines(self, folder: Path, arch: int, denoiser: Manifest, quantized: Mapping[str, Path]) -> list[Manifest]:
        """Make the engines in the denoiser's folder, and pipeline.json. Returns the parts' manifests.

        Args:
            quantized: component -> the engine folder that was built of it.
        """
        (folder / pipeline_file.NAME).unlink(missing_ok=True)  # written again once everything that it lists exists
        built = {one.part.name: self._engine(one, folder, arch) for one in self.work.parts}
        built |= {name: _copied_engine(source, own_folder(folder, name)) for name, source in quantized.items()}
        entries = {self.work.folder.kind.denoiser: GraphEntry.of(".", denoiser)}
        entries |= {name: GraphEntry.of(name, data) for name, data in built.items()}
        files = tuple(self._copied(name, folder) for name in self.work.files)
        kind = self.work.folder.kind.class_name
        pipeline_file.write(folder, PipelineFile(pipeline=kind, engines=entries, files=files))
        return list(built.values())

    def _engine(self, one: PartWork, folder: Path, arch: int) -> Manifest:
        own = own_folder(folder, one.part.name)
        (own / manifest.NAME).unlink(missing_ok=True)
        for name in (export.FILE, f"{export.FILE}.data"):
            self.place(self.shared / one.part.name / name, own / name)
        made, config = self._made[one.part.name], self.config.of_part(one.part.name)
        costs = made.costs.copy()
        planned, incomplete = plan_engine(self.execution, config, own, made.key, arch, one.inputs(), None, costs)
        data = part_manifest(config, one, made, own, arch, costs, planned, incomplete, self.execution.digests)
        manifest.write(own, data)
        return data

    def _copied(self, name: str, folder: Path) -> FileEntry:
        """Copy a file of the pipeline into the engine's folder."""
        target = folder / name
        own_folder(folder, *Path(name).parts[:-1])
        with atomic_write(target) as tmp:
            shutil.copyfile(self.work.folder.path / name, tmp)
        return FileEntry(name, target.stat().st_size, sha256(target))


def _copied_engine(source: Path, target: Path) -> Manifest:
    """Put a whole engine folder into the denoiser's. Returns its manifest."""
    (target / manifest.NAME).unlink(missing_ok=True)
    data = manifest.read(source)
    for file in (file for part in manifest.PARTS for file in manifest.files_of(getattr(data, part))):
        assert file.sha256 is not None  # this build wrote the manifest
        place(source / file.file, target / file.file, file.sha256)
    manifest.write(target, data)
    return data
