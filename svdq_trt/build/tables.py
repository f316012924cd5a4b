"""Tables for people that are never cut: where one is wider than the terminal, every row is a paragraph."""

from __future__ import annotations

from collections.abc import Container, Sequence

from rich import box
from rich.table import Table

from svdq_trt.build.console import Console

_INDENT = 4
_ANY_WIDTH = 10_000


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Container[str] = ()
) -> None:
    """Print rows of cells under `columns`; those in `left` are aligned to the left.

    A file or a pipe has no width: it gets the table, however wide.
    """
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide = console.options.update(width=_ANY_WIDTH, max_width=_ANY_WIDTH)
    needed = console.measure(table, options=wide).maximum
    if not console.is_terminal:
        console.width = needed
    if needed <= console.width:
        console.print(table)
        return
    for name, *cells in rows:
        console.print(name, soft_wrap=True)
        items = [f"{column} {cell}" for column, cell in zip(columns[1:], cells, strict=True)]
        for line in _lines(items, console.width - _INDENT):
            console.print(" " * _INDENT + line, soft_wrap=True)


def _lines(items: Sequence[str], width: int) -> list[str]:
    """The items, separated by commas, on lines of `width`; one that is longer has a line of its own."""
    lines: list[str] = []
    for index, item in enumerate(items):
        text = item if index == len(items) - 1 else f"{item},"
        if lines and len(lines[-1]) + 1 + len(text) <= width:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return lines
