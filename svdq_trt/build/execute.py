"""Run stages that are not fresh, each in a process of its own, and keep count of what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from svdq_trt.base.files import own_folder, remove_leftovers
from svdq_trt.build import freshness
from svdq_trt.build.process import StageRunner
from svdq_trt.build.stage import Result, Stage, from_builtins, to_builtins
from svdq_trt.build.ui import Screen

R = TypeVar("R", bound=Result)


@dataclass
class Costs:
    """Costs of stages by their names: seconds, and peak resident bytes of their processes."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Costs:
        """A copy, to which other stages can be added."""
        return Costs(dict(self.seconds), dict(self.peak_rss))


class Execution:
    """Reuses stages that are fresh and runs the others.

    Attributes:
        force: run everything. logs: folder of the stages' logs.
        digests: SHA-256 of every file that the stages wrote, now or when they ran.
    """

    def __init__(self, screen: Screen, runner: StageRunner, logs: Path, force: bool = False) -> None:
        self.screen, self.runner, self.logs, self.force = screen, runner, logs, force
        self.digests: dict[Path, str] = {}

    def run(self, stage: Stage[R], costs: Costs) -> R:
        """Return the stage's result, recorded or new; its cost, now or when it ran, goes into `costs`.

        Raises:
            SvdqError: the stage's own.
        """
        found = None if self.force else self._recorded(stage)
        if found is None:
            return self.again(stage, costs)
        self.screen.reused(stage.label)
        return self._taken(stage, found, costs)

    def again(self, stage: Stage[R], costs: Costs) -> R:
        """`run` for a stage that must run, fresh or not."""
        return self._taken(stage, self._run(stage), costs)

    def _taken(self, stage: Stage[R], found: tuple[R, float, int], costs: Costs) -> R:
        """Say the result's notes and count its cost."""
        value, seconds, peak_rss = found
        for note in value.notes:
            self.screen.say(note)
        costs.seconds[stage.name], costs.peak_rss[stage.name] = round(seconds, 2), peak_rss
        return value

    def _run(self, stage: Stage[R]) -> tuple[R, float, int]:
        own_folder(stage.folder.parent, stage.folder.name)
        remove_leftovers(stage.folder, stage.files)
        with self.screen.stage(stage.label) as progress:
            done = self.runner.run(stage, self.logs / f"{stage.folder.name}.{stage.name}.log", progress)
        assert done.value is not None, f"{stage.name} returned nothing to rank 0"
        value = to_builtins(done.value)
        record = {"value": value, "seconds": done.seconds, "peak_rss_bytes": done.peak_rss_bytes}
        self._note(stage, freshness.store(stage.folder, stage.name, stage.key, stage.files, record))
        return done.value, done.seconds, done.peak_rss_bytes

    def _recorded(self, stage: Stage[R]) -> tuple[R, float, int] | None:
        """Recorded result, seconds and peak bytes of a fresh stage; None where it must run."""
        record = freshness.lookup(stage.folder, stage.name, stage.key)
        if record is None:
            return None
        try:
            value: R = from_builtins(record.result["value"], stage.result)  # type: ignore[assignment]
            found = value, float(record.result["seconds"]), int(record.result["peak_rss_bytes"])
        except (KeyError, TypeError, ValueError, msgspec.ValidationError):
            return None  # a damaged record: the stage runs again
        self._note(stage, record)
        return found

    def _note(self, stage: Stage[R], record: freshness.Record) -> None:
        self.digests |= {stage.folder / name: digest for name, digest in record.digests.items()}
