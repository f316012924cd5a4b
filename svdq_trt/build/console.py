"""rich for plain text: its tables and bars, without its markup, which would swallow a folder named ``[/b]``."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.progress import Task, TextColumn
from rich.text import Text

from svdq_trt.base.terminal import quoted


class Console(rich.console.Console):
    """A console without markup, emoji codes or highlighting, on which every string is quoted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Quote a string on its way to the terminal; table cells pass here, too."""
        return super().render_str(quoted(text), **options)


class Words(TextColumn):
    """Plain text beside a bar; `text_format` as in rich's TextColumn."""

    def render(self, task: Task) -> Text:
        """The text of the task."""
        return Text(quoted(self.text_format.format(task=task)), style=self.style, justify=self.justify)
