"""A folder's engines of a pipeline, checked as far as no library is needed for it, and opened one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import UsageError
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.choice import Opening, choose_runtime
from svdq_trt.runtime.opening import check_weight_budget
from svdq_trt.runtime.protocol import Runner


class Engines:
    """What pipeline.json names.

    Attributes:
        folder: the denoiser's. file: pipeline.json. manifests: by component.
        for_every_picture: components, without those that encode an image, which few requests bring.

    Args, and raises: as loading.load, before an engine is opened.
    """

    def __init__(
        self, folder: Path, runtime: str, how: Opening, weight_budget: int | Mapping[str, int] | None, cuda_graph: bool
    ) -> None:
        self.folder, self._how, self._cuda_graph, self._activations = folder, how, cuda_graph, SharedActivations()
        self.file, self.manifests = pipeline_file.verify(folder)
        self._in_tensorrt = {
            name: choose_runtime(folder / entry.folder, self.manifests[name], runtime)[0]
            for name, entry in self.file.engines.items()
        }
        budgets = {self.file.denoiser: weight_budget} if isinstance(weight_budget, int) else weight_budget or {}
        self._budgets: Mapping[str, int] = budgets
        for name, budget in self._budgets.items():
            self._check_budget(name, budget)
        self.for_every_picture = tuple(
            name for name, data in self.manifests.items() if all(one.name != "image" for one in data.inputs)
        )

    def open(self, name: str) -> Runner:
        """Open the engine of a component, which file.engines has."""
        return self._how.open(
            self.folder / self.file.engines[name].folder,
            self._in_tensorrt[name],
            activations=self._activations,
            weight_budget=self._budgets.get(name),
            cuda_graph=self._cuda_graph and name == self.file.denoiser,
            memory="torch",
        )

    def _check_budget(self, name: str, budget: int) -> None:
        where = f"weight_budget of {name[:80]}"
        if name not in self.manifests:
            raise UsageError(where, "no such engine", f"one of {', '.join(self.manifests)}")
        if not self._in_tensorrt[name]:
            raise UsageError(where, "an engine that runs in ONNX Runtime", "one that runs in TensorRT")
        check_weight_budget(where, self.manifests[name], budget)
