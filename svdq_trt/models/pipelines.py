"""The pipelines of diffusers that run from engines alone, and what is in the folder of one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError, first_line
from svdq_trt.base.files import read_json_object
from svdq_trt.base.needs import need
from svdq_trt.models.parts import GRAPHS, Part, graph_name, part_class
from svdq_trt.models.prompts import (
    ChatTemplate,
    Conversation,
    Instruction,
    OwnTemplate,
    PromptTemplate,
    processor_template,
)
from svdq_trt.models.spec import ModelSpec
from svdq_trt.models.text_graphs import LanguageModelGraph, MaskedTextGraph

INDEX = "model_index.json"
#: processors of texts and images, of which a text needs the tokenizer alone: the other half asks for torchvision
PROCESSORS = ("PixtralProcessor",)
TOKENIZERS = (
    *("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"),
    *PROCESSORS,
)


@dataclass(frozen=True)
class PipelineKind:
    """A pipeline from text to a picture.

    Attributes:
        class_name: diffusers' class. denoiser: its component.
        clip_tokens: tokens of the denoiser's text that are CLIP's; the others are another encoder's.
        negative: whether a negative prompt has an effect.
        doubled_above: the scale of guidance above which the denoiser's batch has two rows to a picture; None where it
            has one, as pipelines without such guidance do, and those that call the denoiser twice.
        most_tokens: longest text that its class takes, beside CLIP's; None where it has no limit.
        template: what the tokenizer gets around a prompt; None where it is the text alone.
        optional: a text encoder and its tokenizer, both of which a folder may lack.
        states: that its class reads of a language model, see Part.states.
    """

    class_name: str
    denoiser: str = "transformer"
    clip_tokens: int = 0
    negative: bool = True
    doubled_above: float | None = 1.0
    most_tokens: int | None = None
    template: PromptTemplate | None = None
    optional: frozenset[str] = frozenset()
    states: tuple[int, ...] = ()

    def text_tokens(self, pipeline: Any, tokenizer: Any, text: str, negative: bool) -> int:
        """How many tokens a text has, as `pipeline`, diffusers' class, gives it to a tokenizer, without the dropped."""
        if self.template is None:
            return len(tokenizer(text, verbose=False).input_ids)
        return self.template.tokens(pipeline, tokenizer, text, negative)


KINDS = {
    kind.class_name: kind
    for kind in (
        PipelineKind("StableDiffusionXLPipeline", denoiser="unet"),
        PipelineKind("FluxPipeline", negative=False, doubled_above=None, most_tokens=512),
        PipelineKind("PixArtSigmaPipeline"),
        PipelineKind(
            "StableDiffusion3Pipeline",
            clip_tokens=77,
            most_tokens=512,
            optional=frozenset({"text_encoder_3", "tokenizer_3"}),
        ),
        PipelineKind("ChromaPipeline", doubled_above=None, most_tokens=512),
        PipelineKind(
            "ZImagePipeline",
            doubled_above=0.0,
            template=ChatTemplate({"add_generation_prompt": True, "enable_thinking": True}),
            states=(-2,),
        ),
        PipelineKind(
            "Flux2KleinPipeline",
            negative=False,
            doubled_above=None,
            template=ChatTemplate({"add_generation_prompt": True, "enable_thinking": False}),
            states=(9, 18, 27),
        ),
        PipelineKind(
            "Flux2Pipeline", negative=False, doubled_above=None, template=Conversation({}), states=(10, 20, 30)
        ),
        PipelineKind("SanaPipeline", template=Instruction(), states=(-1,)),
        PipelineKind("QwenImagePipeline", doubled_above=None, most_tokens=1024, template=OwnTemplate(), states=(-1,)),
    )
}


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline's folder by its index.

    Attributes:
        path: the folder. kind: the pipeline's. classes: component -> its class, without those that are absent.
        settings: the pipeline's own, such as force_zeros_for_empty_prompt.
    """

    path: Path
    kind: PipelineKind
    classes: Mapping[str, str]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> PipelineFolder:
        """Read the index and check it. Raises as `read_index` and `check`."""
        found = cls.read_index(path)
        found.check()
        return found

    @classmethod
    def read_index(cls, path: Path) -> PipelineFolder:
        """Read the index, without diffusers.

        Raises:
            ArtifactError: none, or not a pipeline's. UnsupportedError: a pipeline that no engine runs.
        """
        where = path / INDEX
        index = read_json_object(where, "the index of a diffusers pipeline")
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in KINDS:
            raise UnsupportedError(
                str(where), f"a {str(name)[:80]}", f"one of {', '.join(KINDS)}: pictures from text alone"
            )
        pairs = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
        classes = {key: str(value[1]) for key, value in pairs.items() if value[1] is not None}
        settings = {key: value for key, value in index.items() if key not in pairs and not key.startswith("_")}
        return cls(path, KINDS[name], classes, settings)

    def check(self) -> None:
        """Compare the components with those of diffusers' class, whose import takes seconds.

        Raises:
            ArtifactError: one is missing or unknown. UnsupportedError: one that no engine runs.
        """
        known = inspect.signature(self.diffusers_class().__init__).parameters
        texts = [name for name in known if name.startswith(("text_encoder", "tokenizer"))]
        needed = [self.kind.denoiser, "vae", "scheduler", *texts]
        spared = self.kind.optional if self.kind.optional.isdisjoint(self.classes) else frozenset()
        missing = [name for name in needed if name not in self.classes.keys() | spared]
        if odd := [*missing, *(self.classes.keys() - known)]:
            got = f"{'an unknown' if odd[0] in self.classes else 'no'} {odd[0][:80]}"
            raise ArtifactError(str(self.path / INDEX), got, f"the components of a {self.kind.class_name}")
        for component, class_name in self.classes.items():
            self._check(component, class_name)

    def diffusers_class(self) -> Any:
        """The pipeline's class."""
        return need("diffusers", "diffusers", self.kind.class_name)

    def without_components(self) -> dict[str, Any]:
        """Keywords of the class beside the folder's components: its settings, and None for what it may lack."""
        parameters = list(inspect.signature(self.diffusers_class()).parameters.values())
        absent = {p.name: None for p in parameters if p.default is inspect.Parameter.empty}
        return absent | {p.name: self.settings[p.name] for p in parameters if p.name in self.settings}

    def _check(self, component: str, class_name: str) -> None:
        """Raise UnsupportedError for a component that is neither the denoiser, nor a part, nor copied."""
        where = f"{self.path / INDEX}: {component}"
        if component == self.kind.denoiser:
            return
        if class_name in GRAPHS or self.is_tokenizer(component):
            self._check_taken(where, component, class_name)
            return
        if component == "scheduler":
            cls = need("diffusers", "diffusers", class_name)
            if isinstance(cls, type) and issubclass(cls, need("diffusers", "diffusers", "SchedulerMixin")):
                return
        want = f"one of {', '.join((*GRAPHS, *TOKENIZERS))}, or a scheduler"
        raise UnsupportedError(where, f"a {class_name[:80]}", want)

    def _check_taken(self, where: str, component: str, class_name: str) -> None:
        """Raise UnsupportedError for a part or a tokenizer of another class than diffusers' class takes."""
        hint = get_type_hints(self.diffusers_class().__init__).get(component)
        wanted = get_args(hint) or (hint,)
        names = [cls.__name__ for cls in wanted]
        if class_name in GRAPHS:
            fits = issubclass(part_class(class_name), wanted)
        else:  # transformers 4 has two classes of each, and Fast is the one in Rust
            bare = {name.removesuffix("Fast") for name in names}
            auto = "AutoProcessor" if class_name in PROCESSORS else "AutoTokenizer"
            fits = bool(bare & {auto, class_name.removesuffix("Fast")})
        if not fits:
            raise UnsupportedError(where, f"a {class_name}", f"the {' or '.join(names)} of a {self.kind.class_name}")

    def is_tokenizer(self, component: str) -> bool:
        """Whether a component is a tokenizer."""
        return self.classes[component] in TOKENIZERS

    @property
    def modules(self) -> dict[str, str]:
        """Components beside the denoiser that engines run, with their classes."""
        return {name: cls for name, cls in self.classes.items() if cls in GRAPHS and name != self.kind.denoiser}

    @property
    def copied(self) -> list[str]:
        """Components that no engine runs, the scheduler and tokenizers."""
        return [name for name in self.classes if name not in (self.kind.denoiser, *self.modules)]

    def part_names(self) -> list[str]:
        """Names of all graphs beside the denoiser, as Part.name."""
        return [graph_name(name, role) for name, cls in self.modules.items() for role in GRAPHS[cls]]

    def config(self, component: str) -> dict[str, Any]:
        """A module's config.json. Raises ArtifactError: missing or not JSON."""
        config = read_json_object(self.path / component / "config.json", f"the config of a {self.classes[component]}")
        return {key: value for key, value in config.items() if not key.startswith("_")}

    def parts(self, act_dtype: str, tokens: int) -> list[Part]:
        """All graphs beside the denoiser.

        Args:
            act_dtype: the denoiser's. tokens: of its text, at most.

        Raises:
            UsageError: more tokens than the pipeline takes, or too few for its text encoders.
            ArtifactError: a config or a tokenizer that cannot be read.
        """
        most, clip = self.kind.most_tokens, self.kind.clip_tokens
        text = tokens - clip
        if text < 0:
            raise UsageError("--tokens", str(tokens), f"at least {clip}, which are CLIP's")
        if text == 0 and any(issubclass(GRAPHS[cls].get("", object), MaskedTextGraph) for cls in self.modules.values()):
            want = f"more, as {clip} are CLIP's and none is left for another text encoder"
            raise UsageError("--tokens", str(tokens), want)
        if most is not None and text > most:
            want = f"at most {most + clip}, as a {self.kind.class_name} takes"
            raise UsageError("--tokens", str(tokens), want)
        found, own = [], text + self._dropped()
        for component, class_name in self.modules.items():
            config = self.config(component)
            dtype = _dtype(class_name, config, act_dtype)
            for role, graph in GRAPHS[class_name].items():
                states = self.kind.states if issubclass(graph, LanguageModelGraph) else ()
                found.append(Part(component, role, class_name, config, dtype, own, states))
        return found

    def _dropped(self) -> int:
        """How many tokens the text encoder reads for the denoiser's text more than that has."""
        template = self.kind.template
        return 0 if template is None else template.dropped(self.diffusers_class(), self.files["tokenizer"])

    @functools.cached_property
    def files(self) -> dict[str, Any]:
        """What `copied` names, by its own library from its files, which are read once.

        Raises:
            ArtifactError: none, they cannot be read, or a tokenizer has no words, as transformers makes one without
                files, no token for padding, or no chat template, which the pipeline needs.
        """
        return {name: self._load(name) for name in self.copied}

    def _load(self, component: str) -> Any:
        """One of `files`."""
        class_name, where = self.classes[component], self.path / component
        self._files(component)
        library = "transformers" if self.is_tokenizer(component) else "diffusers"
        cls = need(library, library, "AutoTokenizer" if class_name in PROCESSORS else class_name)
        try:
            found = cls.from_pretrained(where, local_files_only=True)
        except Exception as error:  # whatever the files make the library stumble over
            raise ArtifactError(str(where), f"cannot be loaded ({first_line(error)})", f"a {class_name}") from error
        if not self.is_tokenizer(component):
            return found
        if len(found) <= len(found.all_special_tokens):
            raise ArtifactError(str(where), "no words", f"the vocabulary of a {class_name}")
        if found.pad_token is None:
            raise ArtifactError(str(where), "no token for padding", f"the pad_token of a {self.kind.class_name}")
        if class_name in PROCESSORS:
            found.chat_template = processor_template(where) or found.chat_template
        if isinstance(self.kind.template, ChatTemplate) and found.chat_template is None:
            raise ArtifactError(str(where), "no chat template", f"that of a {self.kind.class_name}")
        return found

    def copied_files(self) -> list[str]:
        """What a run reads beside the engines, by paths in the folder: index, configs, scheduler, tokenizers' files.

        Raises:
            ArtifactError: a component's folder is missing.
        """
        found = [INDEX, *(f"{name}/config.json" for name in self.modules)]
        for component in self.copied:
            found += [f"{component}/{name}" for name in self._files(component) if not name.startswith(".")]
        return found

    def _files(self, component: str) -> list[str]:
        """Names of a component's files. Raises ArtifactError: none."""
        folder = self.path / component
        files = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
        if not files:
            raise ArtifactError(str(folder), "no files", f"those of a {self.classes[component]}")
        return files


def call_arguments(
    pipe: Any, spec: ModelSpec, height: int, width: int, frames: int, steps: int | None, guidance: float | None
) -> dict[str, Any]:
    """Keywords of a pipeline's call for pictures of exactly that size in pixels, as the model is meant to be run.

    Args:
        frames: of a video, where the pipeline makes one. steps: of denoising. guidance: scale. None is the pipeline's
            own default.
    """
    known = inspect.signature(pipe.__call__).parameters
    sizes = {"height": height, "width": width, "num_frames": frames, "max_area": height * width}
    sizes["use_resolution_binning"] = False
    asked = {"num_inference_steps": steps, spec.guidance: guidance}
    return {
        **spec.asked,
        **{name: value for name, value in asked.items() if value is not None},
        **{name: value for name, value in sizes.items() if name in known},
    }


def text_arguments(pipe: Any, kind: PipelineKind, tokens: int) -> dict[str, int]:
    """What a pipeline's call says of a text's length, where it takes it; `tokens`: of the denoiser's text, at most."""
    known = inspect.signature(pipe.__call__).parameters
    return {"max_sequence_length": tokens - kind.clip_tokens} if "max_sequence_length" in known else {}


def read_picture(file: Path, size: tuple[int, int] | None = None) -> Any:
    """The picture of a file, as pipelines take it; of `size`, width and height, if that is given.

    Raises:
        ArtifactError: none, or damaged.
    """
    from diffusers.utils.loading_utils import load_image

    try:
        picture = load_image(str(file))
        return picture if size is None else picture.resize(size)
    except Exception as error:  # whatever a damaged file makes the decoders stumble over
        reason = first_line(error)
        raise ArtifactError(str(file), f"cannot be read ({reason})", "a picture") from error


def from_picture(pipe: Any, masked: bool = False) -> Any:
    """Diffusers' pipeline from a picture to a picture that has the components of `pipe`; `masked` paints a part of it.

    Raises:
        UnsupportedError: there is none.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    argument, auto = ("mask", AutoPipelineForInpainting) if masked else ("image", AutoPipelineForImage2Image)
    want = "a pipeline of which diffusers has one for pictures"
    refused = UnsupportedError(argument, f"given to a {type(pipe).__name__}", want)
    try:
        found = auto.from_pipe(pipe)
    except ValueError:
        raise refused from None
    if "strength" not in inspect.signature(found.__call__).parameters:  # it only refers to them
        raise refused
    return found


def _dtype(class_name: str, config: Mapping[str, Any], act_dtype: str) -> str:
    """A part's dtype, in a pipeline that computes in `act_dtype`.

    T5's sums leave the range of f16, in which transformers therefore keeps a third of it in f32; it was trained in
    bf16. An autoencoder whose config says `force_upcast` does too, and diffusers runs it in f32.
    """
    if act_dtype != "float16":
        return act_dtype
    if class_name == "T5EncoderModel":
        return "bfloat16"
    return "float32" if config.get("force_upcast", class_name == "AutoencoderKL") else act_dtype
