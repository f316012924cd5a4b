"""``Denoiser``: stands where a diffusers pipeline has its UNet, transformer or ControlNet, and runs an engine instead.

One class for all models: a call is bound to the forward signature of the diffusers class, dictionaries such as
added_cond_kwargs are opened, the model's family makes inputs of its arguments, and what then is neither an input of the
engine nor empty is refused. So nothing that a pipeline asks for is dropped without a word.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.models.call_order import CallOrder
from svdq_trt.models.family import spread
from svdq_trt.models.samples import Samples, alike, in_order
from svdq_trt.models.spec import Axis, ModelSpec
from svdq_trt.models.stand_in import Runs, StandIn

#: arguments whose entries are arguments themselves
_DICTIONARIES = ("added_cond_kwargs",)
_FIXED_WEIGHTS = "LoRA goes into an engine when it is built: svdq-trt build --lora, or --lora-slots."
_CONTROLNET = "Residuals of a ControlNet are inputs of an engine from svdq-trt build --controlnet."
_FIX = {"cross_attention_kwargs": _FIXED_WEIGHTS, "joint_attention_kwargs": _FIXED_WEIGHTS}


class Denoiser(StandIn):
    """Called like the diffusers module of `spec`; runs `runner`. Has no parameters: moving or casting it does nothing.

    Attributes:
        runner: what runs, such as a Session. spec: the model it was built from. config: like the torch module's.
        original: the torch module it stands in for, or None. is_cache_enabled: as diffusers has it.
    """

    ADVICE = "Call svdq_trt.runtime.detach(pipe) first."
    is_cache_enabled = False

    def __init__(
        self, runner: Runs, spec: ModelSpec, name: str, config: Any = None, original: nn.Module | None = None
    ) -> None:
        super().__init__(runner, name, config or default_config(spec))
        cls = spec.model_class()
        self.spec = spec
        self.__dict__["original"] = original  # no submodule: pipe.to() must not move it
        self._context, self._calls = "", CallOrder()
        self._signature = inspect.signature(cls.forward)
        self._output_class = _output_class(cls)
        names = {io.name for io in spec.inputs}
        counts = {base: sum(name.startswith(f"{base}_") for name in names) for base in spec.family.lists}
        self._lists = {base: count for base, count in counts.items() if count}
        self._batched = [io.name for io in spec.inputs if io.has_batch and len(io.dims) > 1]
        if names != (got := set(self._dtypes)):
            raise ArtifactError(
                f"an engine for {spec.name}",
                f"inputs {', '.join(sorted(got))}",
                ", ".join(sorted(names)),
                "Build the engine again.",
            )
        width = getattr(self.config, "projection_class_embeddings_input_dim", None)
        if width:  # SDXL's pipelines compare it with the width of their text encoders
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        for part in spec.family.absent:
            setattr(self, part, None)

    @property  # type: ignore[misc]
    def __class__(self) -> type[nn.Module]:  # type: ignore[override]
        """The diffusers class: pipelines with a ControlNet ask whether it is an instance of that."""
        return self.spec.model_class()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the runner's activations; pipelines cast embeddings to it."""
        found: torch.dtype = self._dtypes[next(io.name for io in self.spec.inputs if io.dtype == "act")]
        return found

    @contextlib.contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Context in which pipelines make one call, such as "cond"; a runner's step cache is one for each."""
        self._context = name
        try:
            yield
        finally:
            self._context = ""

    def restart(self) -> None:
        """Begin another picture: a step cache forgets the last one's steps."""
        self._calls.restart()
        self._forget()

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Diffusers' name of `restart`, which its pipelines call at the end of a picture."""
        self.restart()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine; same arguments and return type as the diffusers module.

        Tensors are cast to the engine's dtypes; the result has the dtype and the device of the first argument.

        Raises:
            UnsupportedError: an argument that the engine has no input for.
            ShapeError: sizes outside the engine's profile.
        """
        given = self._bind(args, kwargs)
        return_dict = given.pop("return_dict", True)
        first, found = _first_tensor(given.values()), self._inputs(given)
        caching = bool(getattr(self.runner, "step_cache", 0.0))
        call = self._call(found) if caching else ()
        parts = [
            (rows, self._run(one, first, {"cache": (*call, tuple(rows))} if caching else {}))
            for rows, one in alike(self.spec.inputs, found)
        ]
        outputs = {io.name: in_order([(rows, out[io.name]) for rows, out in parts]) for io in self.spec.outputs}
        returned = self.spec.family.returned(outputs)
        return self._output_class(*returned) if return_dict else returned

    # ---- inside ------------------------------------------------------------------------------------------------

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, dictionaries opened; without those left out, or given as what they are by default.

        Raises:
            TypeError: an unknown or a missing argument, as from the diffusers module.
        """
        bound = self._signature.bind(self, *args, **kwargs).arguments
        given = {name: value for name, value in list(bound.items())[1:] if name not in _DICTIONARIES}
        given = {name: value for name, value in given.items() if not self._is_default(name, value)}
        for name in _DICTIONARIES:
            given |= bound.get(name) or {}
        return given

    def _is_default(self, name: str, value: Any) -> bool:
        return isinstance(value, bool | int | float | str) and value == self._signature.parameters[name].default

    def _inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Values of the engine's inputs from a call's arguments."""
        found = {name: value for name, value in self.spec.family.flatten(given).items() if not _is_empty(value)}
        found = self._spread(found)
        for name, value in found.items():
            if name not in self._dtypes:
                want = f"nothing: the engine's inputs are {', '.join(self._dtypes)}"
                fix = _CONTROLNET if any(io.name.startswith(name) for io in self.spec.residuals) else ""
                raise self.refuse(name, f"{type(value).__name__} given", want, _FIX.get(name, fix))
            if not isinstance(value, torch.Tensor | np.ndarray | int | float | Samples):
                raise self.refuse(name, f"{type(value).__name__} given", "a tensor")
        for io in self.spec.inputs:
            if io.name not in found and io.default is None:
                raise self.refuse(io.name, "not given", f"a tensor: {self.spec.name} needs it")
        return found

    def _spread(self, found: dict[str, Any]) -> dict[str, Any]:
        """The values with the tensors of lists as inputs of their own. Raises UnsupportedError: another number."""
        given = {name: found[name] for name in self._lists if isinstance(found.get(name), list | tuple)}
        for name, tensors in given.items():
            if len(tensors) != self._lists[name]:
                got, want = f"{len(tensors)} tensors", f"{self._lists[name]}: the engine has an input for each"
                raise self.refuse(name, got, want)
        return spread(found, tuple(given))

    def _call(self, found: Mapping[str, Any]) -> tuple[Hashable, ...]:
        """Which steps this call's is to be compared with: those of the same context, and place in their step."""
        timestep = float(torch.as_tensor(found[self.spec.family.timestep]).max())
        place, other = self._calls.next(self._context, timestep)
        if other:
            self._forget()
        return self._context, place

    def _forget(self) -> None:
        if (reset := getattr(self.runner, "reset", None)) is not None:
            reset()

    def _run(
        self, found: Mapping[str, Any], like: torch.Tensor, cache: Mapping[str, Hashable]
    ) -> dict[str, torch.Tensor]:
        """Run the engine on its inputs' values; the outputs by name, on the device and in the dtype of `like`.

        `cache`: for a runner with a step cache, what `run` is to be told.
        """
        feed = {}
        given = [io for io in self.spec.inputs if io.name in found]
        for io in given:
            tensor = torch.as_tensor(found[io.name]).to(self._dtypes[io.name])
            if tensor.numel() == 1 and len(io.dims) == 1:  # one timestep for all, as diffusers takes it
                batch = next(len(found[n]) for n in self._batched if n in found) if io.has_batch else 1
                tensor = tensor.reshape(1).expand(batch)
            feed[io.name] = tensor.contiguous()
        values = {
            dim.name: dim.value(size)
            for io in given
            for dim, size in zip(io.dims, feed[io.name].shape, strict=True)
            if isinstance(dim, Axis)
        }
        for io in self.spec.inputs:
            if io.name not in feed:
                feed[io.name] = io.left_out(values, self._dtypes[io.name], like.device)
        # A session's output is overwritten by its next run; schedulers keep earlier steps.
        return {
            name: torch.as_tensor(out).to(device=like.device, dtype=like.dtype, copy=True)
            for name, out in self.runner.run(feed, **cache).items()
        }


def _first_tensor(values: Iterable[Any]) -> torch.Tensor:
    """The first tensor of a call, which may be in a list."""
    tensors = (value[0] if isinstance(value, list | tuple) and value else value for value in values)
    return next(value for value in tensors if isinstance(value, torch.Tensor))


def component_of(pipe: Any, spec: ModelSpec) -> str:
    """The name of the pipeline's component that is the model: that of its folder in the published checkpoint.

    Raises:
        UnsupportedError: there is none.
    """
    if spec.subfolder not in _components(pipe):
        want = f"a diffusers pipeline of {spec.name}, which has one"
        raise UnsupportedError(type(pipe).__name__, f"no {spec.subfolder} among its components", want)
    return spec.subfolder


def attached(pipe: Any) -> dict[str, Denoiser]:
    """The Denoisers among a pipeline's components, by name."""
    return {name: part for name, part in _components(pipe).items() if isinstance(part, Denoiser)}


def _components(pipe: Any) -> dict[str, Any]:
    found = getattr(pipe, "components", None)
    return found if isinstance(found, dict) else {}


def default_config(spec: ModelSpec) -> Any:
    """The config that the spec's class would have if built."""
    return constructor_config(spec.model_class(), spec.config)


def constructor_config(cls: type[nn.Module], config: Mapping[str, Any]) -> Any:
    """The config of a diffusers class: its constructor's defaults and the values of `config`."""
    from diffusers.configuration_utils import FrozenDict

    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return FrozenDict(defaults | dict(config))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(v is None for v in value.values()))


def _output_class(cls: type[nn.Module]) -> Any:
    """The type that the class's forward returns for return_dict=True."""
    module = inspect.getmodule(cls)
    for name in (
        "ControlNetOutput",
        "FluxControlNetOutput",
        "UNet2DConditionOutput",
        "Transformer2DModelOutput",
        "Flux2Transformer2DModelOutput",
    ):
        if hasattr(module, name):
            return getattr(module, name)
    for own in vars(module).values():  # as some classes have one of their own
        if (
            isinstance(own, type)
            and own.__module__ == cls.__module__
            and "sample" in getattr(own, "__dataclass_fields__", {})
        ):
            return own
    raise UnsupportedError(f"class {cls.__name__}", "no known output type", "a diffusers UNet or transformer")
