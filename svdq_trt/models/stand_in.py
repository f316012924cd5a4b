"""``StandIn``: a module without parameters in the place of one of a diffusers pipeline's models; it runs an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from svdq_trt.base.errors import UnsupportedError


class Input(Protocol):
    """An input of a runner."""

    @property
    def name(self) -> str:
        """Name in the model's graph."""

    @property
    def dtype(self) -> str:
        """Torch's name of the dtype, such as "float16"."""


class Runs(Protocol):
    """The interface of a stand-in's runner: a Session, an OnnxSession, a torch module that is recorded."""

    @property
    def inputs(self) -> Sequence[Input]:
        """The inputs, in the model's order."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run on tensors by name; returns the outputs by name."""


class EngineAttributeError(UnsupportedError, AttributeError):
    """An attribute of the torch module that an engine does not have; ``hasattr`` returns False for it."""


class StandIn(nn.Module):
    """Runs `runner`. Has no parameters: moving or casting it does nothing.

    Attributes:
        runner: what runs, such as a Session. config: like the torch module's.
        ADVICE: the end of the sentence about what an engine lacks.
    """

    ADVICE: ClassVar[str] = ""

    def __init__(self, runner: Runs, name: str, config: Any) -> None:
        """`name` is the component's in its pipeline."""
        super().__init__()
        self.runner, self.config, self._name = runner, config, name
        self._dtypes = {p.name: getattr(torch, p.dtype) for p in runner.inputs}

    @property
    def device(self) -> torch.device:
        """The device on which the runner computes."""
        return torch.device(getattr(self.runner, "device", "cpu"))

    def refuse(self, argument: str, got: str, want: str, fix: str = "") -> UnsupportedError:
        """The error for an argument that the engine has no use for."""
        return UnsupportedError(f"pipe.{self._name}: {argument}", got, want, fix)

    def _run_rows(self, inputs: Mapping[str, Tensor], runner: Any = None) -> list[dict[str, Tensor]]:
        """Run inputs [B, ...] of any B on `self.runner` or another: as many rows at a time as the engine takes.

        Returns:
            the outputs of each run, copied, as a session's next run overwrites its own.
        """
        runner = runner or self.runner
        most, total = min(p.max[0] for p in runner.inputs), len(next(iter(inputs.values())))
        found = []
        for start in range(0, total, most):
            outputs = runner.run({name: value[start : start + most].contiguous() for name, value in inputs.items()})
            found.append({name: torch.as_tensor(value).clone() for name, value in outputs.items()})
        return found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            if isinstance(self.config, Mapping) and name in self.config:  # as diffusers' ConfigMixin has it
                return self.config[name]
            where = f"pipe.{self._name}.{name}"
            raise EngineAttributeError(where, "not part of an engine", "the torch module", self.ADVICE) from None
