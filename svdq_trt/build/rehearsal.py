"""A pipeline's first picture before any of its engines is built: diffusers' own class, on graphs that compute nothing.

Each graph compares the inputs that it is given with its own. So how texts are joined, padded and pooled, how latents
are packed and what stands beside them is diffusers' to say, and what `svdq-trt run` would stumble over is found first.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.errors import ArtifactError, SvdqError, first_line
from svdq_trt.build.sizes import Sizes
from svdq_trt.models import ModelSpec, TensorIO
from svdq_trt.models.assembly import assemble
from svdq_trt.models.parts import Part, is_autoencoder
from svdq_trt.models.pipelines import INDEX, PipelineFolder, call_arguments, from_picture, text_arguments
from svdq_trt.models.spec import Axis

#: sizes that only an autoencoder's scale stands between
_PIXELS = frozenset({"height", "width"})
#: of denoising: few, as a distilled model's scheduler takes no more, which no part's fit depends on
_STEPS = 4
#: tokens of a text; a tokenizer that pads to more than any model reads is not asked to
_LONGEST = 1 << 16
_FIX = "Take all parts from the pipeline that the denoiser is from."


def check_fit(folder: PipelineFolder, spec: ModelSpec, parts: Sequence[Part], sizes: Sizes) -> None:
    """Check that the parts of a pipeline fit its denoiser: the smallest picture is asked for, by one prompt.

    A denoiser that takes a mask paints a part of one anew.

    Args:
        parts: all of them. sizes: the denoiser's.

    Raises:
        ArtifactError: parts that do not fit, or that a pipeline of this class cannot run.
    """
    _Rehearsal(folder, spec, parts, sizes).run(masked="mask_image" in spec.pictures)


class _Rehearsal:
    """See check_fit. What a text encoder gives is its number, everywhere: so an input shows whose it is.

    Attributes:
        tokens: of the denoiser's text, at least and at most. sizes: of the picture. latent: shape of what is decoded.
        numbers: text encoders by their numbers. last: name of the graph that ran last; "" before the first.
    """

    def __init__(self, folder: PipelineFolder, spec: ModelSpec, parts: Sequence[Part], sizes: Sizes) -> None:
        self.folder, self.spec, self.parts = folder, spec, {part.name: part for part in parts}
        low, _, high = sizes.profile["tokens"]
        # A template makes texts as long as their prompts; the others are padded, or cut off, to one length.
        self.tokens = (1 if folder.kind.template else low, high)
        self.sizes = sizes.least() | {"batch": 1, "frames": 1, "images": 1, "tokens": high}
        (latent,) = next(part.inputs for part in parts if part.role == "decoder")
        self.latent = latent.shape(self.sizes)
        texts = [part.component for part in parts if not is_autoencoder(part.class_name)]
        self.numbers, self.last = {float(number): name for number, name in enumerate(texts, 1)}, ""

    def run(self, masked: bool) -> None:
        """Make a picture of a prompt, or paint one anew. Raises as check_fit."""
        kind, height, width = self.folder.kind, self.sizes["height"], self.sizes["width"]
        try:
            pipe = assemble(self.folder, self.spec, self._graph)
            denoiser = getattr(pipe, kind.denoiser)
            if hasattr(denoiser, "add_embedding"):
                denoiser.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=_AnyWidth()))
            self._check_padding(pipe)
            pipe = from_picture(pipe, masked=True) if masked else pipe
            pipe.set_progress_bar_config(disable=True)
            pipe.scheduler.step = self._checked(pipe.scheduler.step)
            asked = call_arguments(pipe, self.spec, height, width, 1, _STEPS, None)
            asked |= text_arguments(pipe, kind, self.sizes["tokens"])
            asked |= _blank(width, height) if masked else {}
            with torch.random.fork_rng(devices=[]), torch.no_grad(), _quiet():
                pipe(prompt="a", output_type="pt", generator=torch.Generator().manual_seed(0), **asked)
        except SvdqError:
            raise
        except Exception as error:  # whatever a pipeline makes of parts that are not each other's
            reason = re.sub(r"FrozenDict\(.*\)\]\)", "its config", first_line(error, most=10_000))[:200]
            got = f"fails {f'behind {self.last}' if self.last else 'at its beginning'} ({reason})"
            want = f"parts that a {kind.class_name} runs with {self.spec.name}"
            raise ArtifactError(str(self.folder.path / INDEX), got, want, _FIX) from error
        finally:
            vars(self.folder.files["scheduler"]).pop("step", None)

    def _graph(self, name: str) -> _Graph:
        """What stands for an engine."""

        def check(inputs: Mapping[str, Tensor]) -> None:
            self.last = name
            if name in self.parts:
                self._check_part(self.parts[name], inputs)
            else:
                self._check_denoiser(inputs)

        of = self.parts.get(name, self.spec)
        number = next((number for number, text in self.numbers.items() if text == name), 0.0)
        return _Graph(of, self.sizes, number, check)

    def _check_padding(self, pipe: Any) -> None:
        """Raise ArtifactError for a tokenizer that pads CLIP's texts to a length that no model has."""
        for part in self.parts.values():
            if "CLIP" not in part.class_name:
                continue
            name = part.component.replace("text_encoder", "tokenizer")
            own: int = self.folder.files[name].model_max_length
            if (tokens := getattr(pipe, "tokenizer_max_length", own)) > _LONGEST:  # the first's, where it has that
                got = "texts of any length" if tokens >= 1 << 63 else f"texts of {tokens} tokens"
                raise self._misfit(name, got, f"a model_max_length of {part.inputs[0].shape(self.sizes)[1]}")

    def _check_denoiser(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise ArtifactError for inputs that the denoiser does not take."""
        for io in self.spec.inputs:
            value = inputs[io.name]
            wrong = [dim for dim, size in zip(io.dims, value.shape, strict=True) if not self._takes(dim, size)]
            if not wrong:
                continue
            got, who = f"{io.name} of {_shape(value.shape)}", self._texts(value) or self.folder.kind.class_name
            if any(isinstance(dim, Axis) and _PIXELS & {*dim.symbols} for dim in wrong):
                got, who = f"{self.sizes['height'] // self.latent[2]} pixels to a latent, so {got}", "vae"
            want = [self._wanted(dim, size) for dim, size in zip(io.dims, value.shape, strict=True)]
            tokens = any(isinstance(dim, Axis) and dim.symbol == "tokens" for dim in wrong)
            fix = "Build it with other --tokens." if tokens else _FIX
            raise self._misfit(who, got, f"{_shape(want)}, which {self.spec.name} takes", fix)

    def _check_part(self, part: Part, inputs: Mapping[str, Tensor]) -> None:
        """Raise ArtifactError for inputs that a part does not take."""
        for io in part.inputs:
            own, given = io.shape(self.sizes), tuple(inputs[io.name].shape)
            if own[1:] != given[1:]:
                want = f"{_shape(given)}, which a {self.folder.kind.class_name} of {self.spec.name} gives it"
                raise self._misfit(part.component, f"{io.name} of {_shape(own)}", want)
        if (ids := inputs.get("input_ids")) is not None and int(ids.max()) >= (words := part.module_config.vocab_size):
            want = f"more than {int(ids.max())}, which its tokenizer gives it"
            raise self._misfit(part.component, f"{words} words", want)

    def _misfit(self, who: str, got: str, want: str, fix: str = _FIX) -> ArtifactError:
        """The error for what components, or the whole pipeline, give."""
        return ArtifactError(f"{self.folder.path}: {who}", got, want, fix)

    def _checked(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's method `step`; its sample is latents in any order, packed or not, and no mask beside them."""
        _, channels, height, width = self.latent

        @functools.wraps(step)
        def checked(output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            found = sample[0].numel() / (height * width)
            if found != channels:
                got = f"{channels} latent channels of {height} x {width}"
                raise self._misfit("vae", got, f"{found:g}, which {self.spec.name} makes")
            return step(output, timestep, sample, *args, **kwargs)

        return checked

    def _takes(self, dim: int | Axis, size: int) -> bool:
        """Whether an input's dimension may have that size; of a batch and of other sizes a run says more."""
        if isinstance(dim, int):
            return size == dim
        if dim.plus:
            return True
        if dim.symbol == "tokens":
            low, high = (dim.size({"tokens": tokens}) for tokens in self.tokens)
            return low <= size <= high
        return not _PIXELS & {*dim.symbols} or size == dim.size(self.sizes)

    def _wanted(self, dim: int | Axis, size: int) -> str:
        """The size that is wanted of an input's dimension, of which another one is given."""
        if self._takes(dim, size):
            return str(size)
        if isinstance(dim, int):
            return str(dim)
        if dim.symbol != "tokens":
            return str(dim.size(self.sizes))
        return " to ".join(dict.fromkeys(str(dim.size({"tokens": tokens})) for tokens in self.tokens))

    def _texts(self, value: Tensor) -> str:
        """The text encoders whose values an input holds, beside zeros of padding; "" for other values."""
        found = {*value.float().unique().tolist()} - {0.0}
        return ", ".join(self.numbers[number] for number in sorted(found)) if found <= self.numbers.keys() else ""


class _Graph:
    """A runner that has its inputs checked, and gives outputs of one number.

    Attributes:
        inputs: see stand_in.Runs; of one size, and one row, of which text encoders and autoencoders take one each.
    """

    def __init__(
        self,
        of: ModelSpec | Part,
        sizes: Mapping[str, int],
        number: float,
        check: Callable[[Mapping[str, Tensor]], None],
    ) -> None:
        self._of, self._sizes, self._number, self._check = of, sizes, number, check
        fixed = Sizes({symbol: (size, size, size) for symbol, size in sizes.items()})
        self.inputs = fixed.tensors(of.inputs, of.torch_dtype)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, for as many rows as there are."""
        self._check(inputs)
        sizes = {**self._sizes, "batch": next(len(inputs[io.name]) for io in self._of.inputs if io.has_batch)}
        return {io.name: self._output(io, sizes) for io in self._of.outputs}

    def _output(self, io: TensorIO, sizes: Mapping[str, int]) -> Tensor:
        return torch.full(io.shape(sizes), self._number, dtype=io.torch_dtype(self._of.torch_dtype))


class _AnyWidth(int):
    """A width that diffusers' own comparison with the text encoders' finds right: the input itself is compared here."""

    def __ne__(self, other: object) -> bool:
        return False

    def __lt__(self, other: int) -> bool:
        return False

    def __gt__(self, other: int) -> bool:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context in which diffusers gives no advice about a picture that nobody sees."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _blank(width: int, height: int) -> dict[str, Tensor]:
    """A picture, and a mask of all of it."""
    return {"image": torch.zeros(1, 3, height, width), "mask_image": torch.ones(1, 1, height, width)}


def _shape(sizes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
