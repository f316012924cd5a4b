"""Prompts that calibration runs, from a text file: one a line, and behind it files of the pictures that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from svdq_trt.base.errors import ArtifactError

_MAX_BYTES = 16 << 20


class Prompt(NamedTuple):
    """A prompt and the files of its pictures."""

    text: str
    pictures: tuple[Path, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """Read the lines of a text file, without empty ones: a prompt, and behind tabs files, as seen from its folder.

    Raises:
        ArtifactError: unreadable, too large, not UTF-8, or without a prompt.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ArtifactError(str(path), f"{size} bytes", f"a text file of at most {_MAX_BYTES} bytes")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ArtifactError(str(path), f"cannot be read ({reason})", "a text file with a prompt per line") from error
    prompts = []
    for line in filter(None, lines):
        text, *files = (part.strip() for part in line.split("\t"))
        prompts.append(Prompt(text, tuple(path.parent / file for file in files)))
    if not prompts:
        raise ArtifactError(str(path), "no prompt", "a text file with a prompt per line")
    return prompts


def check_pictures(path: Path, prompts: Sequence[Prompt], wanted: Sequence[str]) -> None:
    """Raise ArtifactError unless every prompt of a file has the pictures `wanted`, as files that are there."""
    for prompt in prompts:
        where = f"{path}: '{prompt.text[:40]}'"
        if len(prompt.pictures) != len(wanted):
            want = (
                f"{len(wanted)}: {', '.join(wanted)}, each behind a tab" if wanted else "none, as the pipeline has none"
            )
            raise ArtifactError(where, f"{len(prompt.pictures)} files of pictures", want)
        for file in prompt.pictures:
            if not file.is_file():
                raise ArtifactError(where, f"'{file}': no such file", "the file of a picture")
