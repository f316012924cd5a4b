"""A Session or an OnnxSession as a Polygraphy runner, so that the comparison runs what an application runs.

Polygraphy's own TensorRT runner makes its own context with its own settings, without checking the plan; this one uses
the session's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.datatype import DataType
from polygraphy.logger import G_LOGGER

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.evaluate.batches import divided, joined
from svdq_trt.runtime.protocol import Runner
from svdq_trt.runtime.shapes import numpy_dtype


class SessionRunner(BaseRunner):
    """A runner that is opened in its turn and closed before the next one: two big models never hold memory at once."""

    def __init__(self, open_session: Callable[[], Runner], name: str) -> None:
        super().__init__(name=name)
        self._open = open_session

    def activate_impl(self) -> None:
        """Open the session."""
        self.session = self._open()

    def get_input_metadata_impl(self) -> Any:
        """Names and dtypes; open dimensions are None."""
        meta = TensorMetadata()
        for p in self.session.inputs:
            shape = [low if low == high else None for low, high in zip(p.min, p.max, strict=True)]
            meta.add(p.name, dtype=getattr(DataType, p.dtype.upper()), shape=shape)
        return meta

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once, host to host. Values are cast to the session's dtypes: models of two dtypes get the same inputs."""
        feed = as_taken(self.session.inputs, feed_dict)
        start = time.perf_counter()
        outputs = self.session.run(feed)
        self.inference_time = time.perf_counter() - start
        return outputs

    def deactivate_impl(self) -> None:
        """Close the session."""
        self.session.close()
        del self.session


def as_taken(inputs: Sequence[TensorProfile], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`feed` in the dtypes of `inputs`."""
    dtypes = {p.name: numpy_dtype(p.dtype) for p in inputs}
    return {n: v.astype(dtypes.get(n, v.dtype)) for n, v in feed.items()}


def outputs_of(
    open_session: Callable[[], Runner], name: str, feed: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Run a session on all samples of `feed`, in batches it takes; returns its outputs as f64, and the seconds.

    Raises:
        SvdqError: from opening or running the session.
    """
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), SessionRunner(open_session, name) as runner:
        found, seconds = [], 0.0
        for part in divided(feed, runner.session.inputs):
            outputs = runner.infer(dict(part), check_inputs=False)  # the session checks, with errors in our words
            found.append({name: value.astype(np.float64) for name, value in outputs.items()})
            seconds += float(runner.last_inference_time())
        return joined(found), seconds
