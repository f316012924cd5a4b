"""rich for plain text: its tables and bars, without its markup, in which ``[/b]`` is not a folder's name."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.progress import Task, TextColumn
from rich.text import Text

from svdq_trt.base.terminal import quoted


class Console(rich.console.Console):
    """No markup, no emoji codes, no highlighting; every string is quoted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string on its way to the terminal, cells of tables included."""
        return super().render_str(quoted(text), **options)


class Words(TextColumn):
    """Plain text beside a bar; `text_format` as of rich's TextColumn."""

    def render(self, task: Task) -> Text:
        """The task's words."""
        return Text(quoted(self.text_format.format(task=task)), style=self.style, justify=self.justify)
