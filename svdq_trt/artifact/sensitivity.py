"""The file of ``svdq-trt sensitivity``: the effect of quantizing each node alone on the model's output."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object
from svdq_trt.contract.sqnr import decibels

VERSION = 1
_MOST_DB = 300  # the upper end of sqnr.decibels


@dataclass(frozen=True)
class Effect:
    """One node quantized alone: SQNR of its own output on calibration tokens, and of the model's, in dB."""

    node: str
    op: str
    layer_db: float
    output_db: float

    @property
    def gain(self) -> float:
        """Relative error of the model's output per relative error of the node's."""
        return float(10 ** ((self.layer_db - self.output_db) / 10))


@dataclass(frozen=True)
class Sensitivity:
    """A finished scan.

    Attributes:
        model, format, rank, preset: as in ScanConfig. inputs: description of the inputs, for people.
        effects: one per node, in graph order.
        measured_db: SQNR of the output with all nodes quantized.
    """

    model: str
    format: str
    rank: int
    preset: str
    inputs: str
    effects: tuple[Effect, ...]
    measured_db: float

    @property
    def predicted_db(self) -> float:
        """SQNR of the output with all nodes quantized, if their errors are independent."""
        return decibels(math.fsum(10 ** (-e.output_db / 10) for e in self.effects))

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        data = {"version": VERSION, **asdict(self), "predicted_db": self.predicted_db}
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Read a scan. Raises ArtifactError: missing, not JSON, or not such a file."""
        data = read_json_object(path, "a file of `svdq-trt sensitivity`")
        try:
            if data.pop("version") != VERSION:
                raise ValueError("another version")
            data.pop("predicted_db")
            found = msgspec.convert(data, cls)
            numbers = [found.measured_db, *(db for e in found.effects for db in (e.layer_db, e.output_db))]
            if not all(abs(v) <= _MOST_DB for v in numbers):
                raise ValueError(f"a figure beyond {_MOST_DB} dB")
        except (KeyError, ValueError) as error:
            raise ArtifactError(str(path), f"no usable scan ({error})", "a file of `svdq-trt sensitivity`") from None
        return found
