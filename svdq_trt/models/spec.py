"""A model as data: where its weights are published, what its inputs look like, how large it is.

Its `Family` says what is quantized and how a module is made exportable.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ShapeError
from svdq_trt.base.needs import need
from svdq_trt.contract.sizes import SIZES
from svdq_trt.models import derive
from svdq_trt.models.family import Family
from svdq_trt.models.positions import PositionTable
from svdq_trt.models.real import ParametersOnMeta, no_autocast, parameters_to
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, in_float32
from svdq_trt.models.synthetic import Request
from svdq_trt.models.trace import Trace, trace

#: Symbols an axis may depend on. `batch`, `tokens`, `frames` and `images` count; `height` and `width` are pixels.
SYMBOLS = tuple(SIZES)
#: how the name ends of a model whose engine takes a ControlNet's residuals
WITH_CONTROLNET = "-with-controlnet"


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: size = (symbol - first) / divisor + first, a multiple of `multiple`, at most `most` (0: any).

    For latent pixels of 8 x 8 image pixels and images in steps of 32: Axis("height", 8, 4). With `by` the symbol is
    a product: image tokens of 16 x 16 pixels are Axis("height", 256, by=("width",)). `first` counts what is not
    divided: latent frames of a video whose first frame is one of its own are Axis("frames", 4, first=1). `plus` is
    added to the size: a sequence of text and image is Axis("height", 256, by=("width",), plus="tokens").
    """

    symbol: str
    divisor: int = 1
    multiple: int = 1
    by: tuple[str, ...] = ()
    most: int = 0
    first: int = 0
    plus: str = ""

    @property
    def name(self) -> str:
        """Its name in the graph: its symbols."""
        return "_".join((*self.symbols, *filter(None, (self.plus,))))

    def __str__(self) -> str:
        """As ONNX writes it: ``4*height`` for multiples of 4."""
        return self.name if self.multiple == 1 else f"{self.multiple}*{self.name}"

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbol, and those that it is multiplied by."""
        return (self.symbol, *self.by)

    def size(self, sizes: Mapping[str, int]) -> int:
        """The size for given symbol values."""
        return self.size_of(math.prod(sizes[s] for s in self.symbols)) + (sizes[self.plus] if self.plus else 0)

    def size_of(self, value: int) -> int:
        """The size, without what is added, for a product of the symbols' values."""
        return (value - self.first) // self.divisor + self.first

    def value(self, size: int) -> int:
        """The product of the symbols' values that gives a size without what is added."""
        return (size - self.first) * self.divisor + self.first

    def misfit(self, size: int) -> str:
        """What is wanted instead of a size that does not fit; "" for one that does."""
        if size % self.multiple:
            return f"a multiple of {self.multiple}"
        return f"at most {self.most}" if self.most and size > self.most else ""

    def misfit_of(self, value: int) -> str:
        """What is wanted instead of a product of the symbols' values that does not fit; "" if it does."""
        step = self.multiple * self.divisor
        rest = self.value(0) % step
        if value % step != rest:
            return f"{step}*n + {rest}" if rest else f"a multiple of {step}"
        most = self.value(self.most)
        return f"at most {most}" if self.most and value > most else ""


@dataclass(frozen=True)
class TensorIO:
    """One input or output of the exported graph.

    Attributes:
        name: its name in ONNX and in the plan.
        dtype: "act" (the model's act dtype), "float32", "int64" or "bool".
        dims: each an int (static) or an Axis.
        default: of an input that a call may leave out: what then all its elements are.
    """

    name: str
    dtype: str
    dims: tuple[int | Axis, ...]
    default: float | None = None

    def left_out(
        self, values: Mapping[str, int], dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """The input where a call leaves it out, in the memory of one element.

        Args:
            values: products of symbols' values by name of the axis, as other inputs have them.
        """
        assert self.default is not None
        shape = [d if isinstance(d, int) else d.size_of(values[d.name]) for d in self.dims]
        return torch.full((), self.default, dtype=dtype, device=device).expand(shape)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of the dims for symbol values such as {"batch": 2, "height": 1024, ...}."""
        return tuple(d if isinstance(d, int) else d.size(sizes) for d in self.dims)

    @property
    def axes(self) -> tuple[str, ...]:
        """The dims' axes as text; "" for static ones."""
        return tuple("" if isinstance(d, int) else str(d) for d in self.dims)

    @property
    def has_batch(self) -> bool:
        """Whether it has one entry per sample; others are the same for all, as positions are."""
        return isinstance(self.dims[0], Axis) and self.dims[0].symbol == "batch"

    def torch_dtype(self, act: torch.dtype) -> torch.dtype:
        """The dtype for a given act dtype."""
        named: torch.dtype = act if self.dtype == "act" else getattr(torch, self.dtype)
        return named


@dataclass(frozen=True)
class Profile:
    """min, opt, max of every symbol. A symbol whose min equals its max is exported as a static size."""

    batch: tuple[int, int, int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    tokens: tuple[int, int, int]
    tokens2: tuple[int, int, int] = (1, 1, 1)
    frames: tuple[int, int, int] = (1, 1, 1)
    images: tuple[int, int, int] = (1, 1, 1)

    def sizes(self, index: int) -> dict[str, int]:
        """Symbol values at min (0), opt (1) or max (2)."""
        return {symbol: getattr(self, symbol)[index] for symbol in SYMBOLS}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One supported model.

    Attributes:
        name: the name on the command line.
        title: the name for people.
        hub_id, subfolder, variant: where its weights are published; an empty hub_id means nowhere.
        class_path: "module:class" of the diffusers class, imported when first built. library: which it comes from.
        config: constructor arguments of that class; a checkpoint's config.json is compared with it.
        act_dtype: "float16" or "bfloat16"; dtype of weights and activations of the engine.
        pixel_multiple: height and width are multiples of this.
        profile: default optimization profile.
        calibration_pixels: side of the synthetic calibration images: small, yet with many tokens at every level.
        inputs, outputs: those of the exported graph, in order.
        family: the architecture.
        parameters: their number; 0 if unknown.
        twin: the small model of the same structure that stands for it in the tests; empty for such a model itself.
        built: archs for which an engine has been built at full size, for the support table.
        tables: tensors of a published checkpoint that the model keeps in another form.
        pictures: arguments of its pipelines that are pictures, of which each prompt has one.
        guidance: their argument that is the scale of guidance.
        asked: what they are asked for beside that, as the model is meant to be run.
        residuals: inputs for what a ControlNet adds to its streams, which an engine built with --controlnet has as
            well; empty where diffusers has no pipeline that adds any.
        base: name of the model whose nodes and weights it has; its own where that is "".
        description: of a model that has no name, as JSON (described.py); "" for those that `MODELS` has.
        class_aliases: other class names that a published config.json may have for the same model.
        unread: pattern of the names of tensors in a checkpoint that the model leaves out; "" for none.
    """

    name: str
    title: str
    hub_id: str = ""
    subfolder: str = "transformer"
    variant: str = ""
    class_path: str
    library: str = "diffusers"
    config: Mapping[str, Any]
    act_dtype: str
    pixel_multiple: int
    profile: Profile
    calibration_pixels: int
    inputs: tuple[TensorIO, ...]
    outputs: tuple[TensorIO, ...]
    family: Family
    parameters: int = 0
    twin: str = ""
    built: tuple[int, ...] = ()
    tables: tuple[PositionTable, ...] = ()
    pictures: tuple[str, ...] = ()
    guidance: str = "guidance_scale"
    asked: Mapping[str, Any] = field(default_factory=dict)
    class_aliases: tuple[str, ...] = ()
    residuals: tuple[TensorIO, ...] = ()
    base: str = ""
    description: str = ""
    unread: str = ""

    @property
    def weights(self) -> str:
        """The name under which its quantized weights are filed: an engine with more inputs has the same."""
        return self.base or self.name

    def with_controlnet(self) -> ModelSpec:
        """The model with the residuals of a ControlNet among its inputs."""
        inputs = (*self.inputs, *(replace(io, default=0.0) for io in self.residuals))
        return replace(self, name=f"{self.name}{WITH_CONTROLNET}", inputs=inputs, residuals=(), base=self.name)

    @property
    def source(self) -> str:
        """By which another process has the model from `get_model`: its name, or its description."""
        return self.description or self.name

    @property
    def torch_dtype(self) -> torch.dtype:
        """The act dtype as a torch.dtype."""
        return {"float16": torch.float16, "bfloat16": torch.bfloat16}[self.act_dtype]

    def model_class(self) -> type[nn.Module]:
        """The diffusers class, imported only now: that takes seconds. Raises UnsupportedError: it is not there."""
        import diffusers  # noqa: F401 - class_path names it; build/code.py reads imports to know what a stage runs

        module, _, name = self.class_path.partition(":")
        if self.library == "transformers":
            import svdq_trt.models.language_module
            import svdq_trt.models.t5_module  # noqa: F401
        cls: type[nn.Module] = need(self.library, module, name)
        return cls

    def weight_dtype(self, name: str) -> torch.dtype:
        """The dtype of a parameter: f32 where diffusers keeps it so in a 16-bit model, else the act dtype."""
        return torch.float32 if in_float32(self.model_class(), name) else self.torch_dtype

    def build(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "meta", tables: bool | None = None
    ) -> nn.Module:
        """The module in eval mode, without gradients. On "meta" it costs no memory; elsewhere it is random.

        Args:
            dtype: dtype of all parameters; `weight_dtype` when None.
            device: "meta", "cpu", ...
            tables: on meta, too, what the class computes besides parameters has its values. By default so for models
                without a file of ours: families of others see to that where the module is wrapped.
        """
        tables = bool(self.description) if tables is None else tables
        with ParametersOnMeta() if tables and str(device) == "meta" else torch.device(device):
            module = self.model_class()(**self.config)
        if tables:
            parameters_to(module, device)
        self.family.prepare(module)
        # nn.Module's own `to`: diffusers' override logs a warning about modules that stay in f32.
        if dtype is not None:
            nn.Module.to(module, dtype)
        else:
            for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
                if value.is_floating_point():
                    value.data = value.data.to(self.weight_dtype(name))
        return module.eval().requires_grad_(False)

    def recipe(self, module: nn.Module, skip: Sequence[str] = ()) -> Recipe:
        """Groups and kept layers of a module that has not been changed yet; `skip` and errors as in `complete`."""
        return complete(module, *self._nodes, skip)

    @functools.cached_property
    def _nodes(self) -> tuple[list[LinearGroup], dict[str, str]]:
        """What the trace of the model gives; it is made once."""
        return derive.nodes(*self.traced(), self.family.kv_blocks)

    def traced(self) -> tuple[nn.Module, Trace]:
        """The module as it is exported, on meta, and a run of it."""
        module = self.build(tables=False)
        self.wrap(module)
        return module, self.trace(module)

    def trace(self, module: nn.Module) -> Trace:
        """A run of the module on meta. It has been wrapped; nodes may be installed. Raises UnsupportedError."""
        with no_autocast():
            return trace(module, [self._call(end) for end in (0, 1)])

    def _call(self, end: int) -> dict[str, Any]:
        """Arguments of the module on meta: small ones (0), or with more pixels and text (1)."""
        sides = dict.fromkeys(("height", "width"), (8 << end) * self.pixel_multiple)
        sizes = self.profile.sizes(1) | sides | {"batch": 2, "tokens": 32 << end}
        act = self.torch_dtype
        values = {io.name: torch.empty(io.shape(sizes), dtype=io.torch_dtype(act), device="meta") for io in self.inputs}
        return self.family.call(sizes, values)

    def groups(self, module: nn.Module, skip: Sequence[str] = ()) -> tuple[LinearGroup, ...]:
        """The groups of `recipe`: the svdq nodes that the model will have."""
        return self.recipe(module, skip).groups

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Replace the group's members by `fused`: x [..., K] -> y [..., N], or [..., N/2] if gated."""
        self.family.install(module, group, fused)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with flat inputs in the order of `inputs`, and `outputs`; `module` itself is changed."""
        return self.family.wrap(module, [io.name for io in self.inputs])

    @property
    def wrapped(self) -> str:
        """Attribute of what `wrap` returns that holds the module itself."""
        return self.family.WRAPPED

    def built_sizes(self, data: Manifest | None, index: int) -> dict[str, int]:
        """Symbol values at min (0), opt (1) or max (2) of an engine's profile, by its manifest; None: by default."""
        given = {} if data is None else {symbol: getattr(data.options, symbol) for symbol in SYMBOLS}
        sizes = {symbol: (size.min, size.opt, size.max)[index] for symbol, size in given.items() if size is not None}
        return self.profile.sizes(index) | sizes

    def run(self, wrapped: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name of what `wrap` returns, for inputs in their order."""
        found = wrapped(*inputs)
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return {io.name: value for io, value in zip(self.outputs, outputs, strict=True)}

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise ShapeError unless symbols given are positive, pixels fit `pixel_multiple`, and axes their limits."""
        for symbol in (s for s in SYMBOLS if s in sizes):
            step = self.pixel_multiple if symbol in ("height", "width") else 1
            if sizes[symbol] < 1 or sizes[symbol] % step:
                raise ShapeError(symbol, str(sizes[symbol]), f"a positive multiple of {step} for {self.name}")
        for axis in dict.fromkeys(dim for io in self.inputs for dim in io.dims if isinstance(dim, Axis)):
            values = [sizes[symbol] for symbol in axis.symbols if symbol in sizes]
            if len(values) == len(axis.symbols) and (want := axis.misfit_of(math.prod(values))):
                got = " x ".join(map(str, values))
                raise ShapeError(" x ".join(axis.symbols), got, f"{want} for {self.name}")

    def example_inputs(
        self,
        batch: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        tokens: int | None = None,
        noise: float = 0.5,
        frames: int | None = None,
        tokens2: int | None = None,
        images: int | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Seeded synthetic inputs on the CPU, in the order of `inputs`; sizes default to the profile's opt.

        Args:
            batch: number of images.
            height: image height in pixels.
            width: image width in pixels.
            seed: equal seeds and sizes give equal inputs.
            dtype: dtype of the "act" inputs; the act dtype when None.
            tokens: number of text tokens.
            noise: share of noise in [0, 1]: 1 is the first denoising step, 0 the last.
            frames: number of frames of a video.
            tokens2: number of text tokens of a second encoder.
            images: number of images in one sequence of tokens.

        Raises:
            ShapeError: a size that doesn't fit the model.
        """
        counts = {"batch": batch, "tokens": tokens, "tokens2": tokens2, "frames": frames, "images": images}
        given = counts | {"height": height, "width": width}
        sizes = {s: self.profile.sizes(1)[s] if v is None else v for s, v in given.items()}
        self.check_sizes(sizes)
        act = dtype or self.torch_dtype
        out = []
        for io, salt in zip(self.inputs, itertools.count(), strict=False):
            rng = torch.Generator().manual_seed((seed * 1_000_003 + salt) & (2**63 - 1))
            value = self.family.fill_input(io.name, Request(io.shape(sizes), sizes, noise, rng, seed))
            out.append(value.to(io.torch_dtype(act)))
        return tuple(out)
