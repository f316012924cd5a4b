"""What pipelines put around a prompt, which their text encoders read with it."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import read_json_object


class PromptTemplate(ABC):
    """The text around a prompt.

    `pipeline` is diffusers' class, from which a template takes the pipeline's own words and numbers.
    """

    @abstractmethod
    def text(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> str:
        """What the pipeline gives its tokenizer for a prompt, or for a negative one."""

    def dropped(self, pipeline: Any, tokenizer: Any, negative: bool = False) -> int:
        """How many tokens of it the text encoder reads, and the denoiser does not get."""
        return 0

    def tokens(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> int:
        """How many tokens of it the denoiser gets."""
        whole = tokenizer(self.text(pipeline, tokenizer, prompt, negative), verbose=False).input_ids
        return len(whole) - self.dropped(pipeline, tokenizer, negative)


@dataclass(frozen=True)
class ChatTemplate(PromptTemplate):
    """The tokenizer's own, in which a prompt is a user's message.

    Attributes:
        options: of the template.
    """

    options: Mapping[str, bool]

    def text(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> str:
        """The messages, and the beginning of an answer where the options say so."""
        text: str = tokenizer.apply_chat_template(self.messages(pipeline, prompt), tokenize=False, **self.options)
        return text

    def messages(self, pipeline: Any, prompt: str) -> list[dict[str, Any]]:
        """What the template gets for a prompt."""
        return [{"role": "user", "content": prompt}]


class Conversation(ChatTemplate):
    """Behind a message of a system, which the pipeline's module has; the template begins the text by itself."""

    def tokens(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> int:
        """How many tokens the two messages have."""
        messages = self.messages(pipeline, prompt)
        return len(
            tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **self.options)["input_ids"]
        )

    def messages(self, pipeline: Any, prompt: str) -> list[dict[str, Any]]:
        """The two messages."""
        (found,) = vars(sys.modules[pipeline.__module__])["format_input"]([prompt])  # of a batch
        return list(found)


class OwnTemplate(PromptTemplate):
    """The pipeline's own, whose beginning is dropped again: a system's message of so many tokens."""

    def text(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> str:
        """The prompt in the template."""
        text: str = self._pipe(pipeline).prompt_template_encode.format(prompt)
        return text

    def dropped(self, pipeline: Any, tokenizer: Any, negative: bool = False) -> int:
        """The tokens in front of the prompt."""
        count: int = self._pipe(pipeline).prompt_template_encode_start_idx
        return count

    def _pipe(self, pipeline: Any) -> Any:
        """One without components: a pipeline has its template when it is made."""
        return pipeline(**{name: None for name in inspect.signature(pipeline).parameters})


class Instruction(PromptTemplate):
    """What SANA's language model is told to do with a prompt, in front of it; a negative prompt stands alone."""

    def text(self, pipeline: Any, tokenizer: Any, prompt: str, negative: bool = False) -> str:
        """The instruction and the prompt, in small letters."""
        return ("" if negative else self._words(pipeline)) + prompt.lower().strip()

    def dropped(self, pipeline: Any, tokenizer: Any, negative: bool = False) -> int:
        """Of the instruction the first and the last token are kept."""
        return 0 if negative else len(tokenizer.encode(self._words(pipeline))) - 2

    def _words(self, pipeline: Any) -> str:
        return "\n".join(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)


def processor_template(folder: Path) -> str | None:
    """A processor's chat template, where a file has it that tokenizers don't read. Raises ArtifactError: not a text."""
    for path in (folder / "processor_config.json", folder / "chat_template.json"):
        found = read_json_object(path, "a processor's settings").get("chat_template") if path.is_file() else None
        if isinstance(found, str):
            return found
        if found is not None:
            raise ArtifactError(str(path), f"a chat_template of type {type(found).__name__}", "a text")
    return None
