"""An engine's execution context, for which TensorRT-RTX compiles; no device memory of a session is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import SvdqError
from svdq_trt.runtime.cache import RuntimeCache


@dataclass(frozen=True)
class Context:
    """An execution context and where what was compiled for it is kept.

    Attributes:
        engine: ICudaEngine. context: IExecutionContext. cache: None where nothing is kept.
    """

    engine: Any
    context: Any
    cache: RuntimeCache | None

    @property
    def compiled(self) -> bool:
        """False when the runtime cache spared the compilation."""
        return self.cache is None or not self.cache.hit

    @property
    def kept(self) -> bool:
        """Whether the next start is spared it."""
        return self.cache is not None and self.cache.kept


def make_context(trt: Any, engine: Any, logger: Any, cache: tuple[Path, str] | None, own_memory: bool) -> Context:
    """Make a context of `engine` on its GPU, which is current.

    Args:
        trt: the TensorRT module. logger: see opening.Opened.
        cache: file for what TensorRT-RTX compiles, and digest of the plan; None keeps nothing.
        own_memory: whether the context allocates its activations, or is given them.

    Raises:
        SvdqError: no context, as of too little memory.
    """
    kept, strategies = None, trt.ExecutionContextAllocationStrategy
    strategy = strategies.STATIC if own_memory else strategies.USER_MANAGED
    if hasattr(trt, "IRuntimeCache"):  # TensorRT-RTX
        config = engine.create_runtime_config()
        # Eager: a new shape waits for its own kernels instead of first running on slower ones.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.set_execution_context_allocation_strategy(strategy)
        if cache is not None:
            kept = RuntimeCache(config, *cache)
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context(strategy)
    if context is None:
        raise SvdqError("engine", str(logger.errors) or "no execution context", "enough GPU memory")
    if kept is not None:  # most is compiled by now; a new shape adds to it
        kept.save()
    return Context(engine, context, kept)
