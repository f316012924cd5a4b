"""The results for people: a contact sheet as PNG, a table as Markdown. Drawn by Pillow, which torchvision brings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trained import scenes

GAP = 2
COLUMNS, PROMPTED = 8, 96  # pictures of a pipeline that are shown, and their side on the sheet
LABEL, NUMBERS = 190, 150  # widths of the text at the left and at the right
DIFFERENCES, GAIN = 4, 8  # pictures of |quantized - 16 bit|, and how much it is enlarged
HEAD, SECTION = 64, 24  # heights of the sheet's and of a section's title
BLACK, GREY, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
STEP_CACHE, PROGRAM = "-step-cache", "-cpp"  # behind a pipeline's name, of results of step_cache.py and program.py
TILES = "vae-tiles"  # name of the results of tiles.py
CUBE = (0, 128, 255)  # levels of red, green and blue for colours that the 16-bit pictures do not have


class Row(NamedTuple):
    """A row of a sheet: its name, pictures uint8 [B, 3, H, W], and figures."""

    label: str
    pictures: Tensor
    numbers: str


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: sections of rows, of which the first is what the others are compared with.

    Attributes:
        title, note: at the top. columns: what the pictures of a row show. head: of the figures.
        sections: with their names. side: of a picture on the sheet, in pixels. against: name of the first row.
    """

    title: str
    note: str
    columns: Sequence[str]
    head: str
    sections: Sequence[tuple[str, Sequence[Row]]]
    side: int = 64
    against: str = "16 bit"

    def draw(self, out: Path) -> None:
        """Write a PNG."""
        step = self.side + GAP
        middle = LABEL + len(self.columns) * step + GAP * 4  # where the difference pictures begin
        right = middle + DIFFERENCES * step + 8
        height = HEAD + sum(SECTION + len(rows) * step for _, rows in self.sections) + GAP
        sheet = Image.new("RGB", (right - 8 + NUMBERS, height), PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((8, 8), self.title, BLACK, _font(18))
        draw.text((8, 32), self.note, GREY, _font(12))
        for column, name in enumerate(self.columns):
            x = LABEL + column * step + self.side // 2
            draw.multiline_text((x, HEAD - 4), name, GREY, _font(11), anchor="md", align="center")
        draw.multiline_text(
            (middle, HEAD - 4), f"{GAIN} x difference\nfrom {self.against}", GREY, _font(11), anchor="ld"
        )
        draw.multiline_text((right, HEAD - 4), self.head, GREY, _font(11), anchor="ld")
        y = HEAD
        for name, rows in self.sections:
            draw.text((8, y + 5), name, BLACK, _font(14))
            draw.line((8, y + SECTION - 2, sheet.width - 8, y + SECTION - 2), GREY)
            y += SECTION
            want = rows[0].pictures.int()
            for row in rows:
                draw.text((8, y + self.side // 2), row.label, BLACK, _font(13), anchor="lm")
                self._strip(sheet, row.pictures, LABEL, y)
                if row is not rows[0]:
                    changed = (GAIN * (row.pictures.int() - want).abs())[:DIFFERENCES].clamp(max=255).byte()
                    self._strip(sheet, changed, middle, y)
                draw.multiline_text((right, y + self.side // 2), row.numbers, BLACK, _font(13), anchor="lm")
                y += step
        exact = torch.cat([rows[0].pictures for _, rows in self.sections])
        sheet.quantize(palette=_palette(exact), dither=Image.Dither.NONE).save(out, optimize=True)

    def _strip(self, sheet: Image.Image, pictures: Tensor, x: int, y: int) -> None:
        enlarged = pictures.shape[-1] <= self.side
        for i, picture in enumerate(pictures):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
            sheet.paste(image.resize((self.side, self.side), how), (x + i * (self.side + GAP), y))


def contact_sheet(results: dict[str, Any], pictures: dict[str, Tensor], out: Path) -> None:
    """Draw a row per variant and a column per prompt and seed, the 16-bit model on top of every section.

    Args:
        results: from judge.judge. pictures: key -> uint8 [B, 3, H, W], from its pictures.safetensors.
    """
    exact = Row("16 bit", pictures["fp16"], f"{100 * results['fp16']['right_class']:.0f} %")
    sections = []
    for name, group in itertools.groupby(results["variants"], lambda v: v["section"]):
        rows = [exact]
        for v in group:
            rows.append(Row(v["label"], pictures[v["key"]], _numbers(v, v["right_class"])))
        sections.append((name, rows))
    hues = len(scenes.HUES)
    names = [f"{scenes.HUES[label % hues]}\n{scenes.SHAPES[label // hues]}" for label in results["shown"]]
    note = f"{results['sampler_steps']} steps, equal seeds"
    Sheet(results["model"], note, names, "PSNR       SSIM\nright class", sections).draw(out)


def _palette(pictures: Tensor) -> Image.Image:
    """256 colours, to keep the sheet in the repository small: most of them from pictures that came out right."""
    cube = [level for colour in itertools.product(CUBE, repeat=3) for level in colour]
    count = 256 - len(cube) // 3
    strip = Image.fromarray(pictures.permute(0, 2, 3, 1).flatten(0, 1).numpy())
    strip = strip.quantize(count, Image.Quantize.MAXCOVERAGE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(strip.getpalette() or [])[: 3 * count], *cube])
    return palette


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def gallery_sheet(results: dict[str, Any], pictures: dict[str, Tensor], out: Path) -> None:
    """Draw a row per way to make a pipeline's pictures and a column per prompt.

    Args:
        results: from gallery.gallery. pictures: key -> uint8 [B, 3, H, W], from its .safetensors.
    """
    sections = []
    for name, group in itertools.groupby(results["ways"], lambda way: way["section"]):
        rows = []
        for way in group:
            rows.append(Row(way["label"], pictures[way["key"]][:COLUMNS], _numbers(way, way["right"]["whole"])))
        sections.append((name, rows))
    names = [_lines(prompt) for prompt in results["prompts"][:COLUMNS]]
    note = f"{results['steps']} steps, equal seeds"
    title = results["name"].removesuffix(STEP_CACHE).removesuffix(PROGRAM)
    Sheet(title, note, names, "PSNR       SSIM\nas prompted", sections, side=PROMPTED).draw(out)


def tiles_sheet(results: dict[str, Any], pictures: dict[str, Tensor], out: Path) -> None:
    """Draw a row per way to decode, and a column per picture; arguments as gallery_sheet's."""
    columns = results["prompts"][:DIFFERENCES]
    rows = [
        Row(way["label"], pictures[way["key"]][: len(columns)], f"{way['psnr_db']:.1f} dB" if "psnr_db" in way else "")
        for way in results["ways"]
    ]
    sections, names = [(results["ways"][0]["section"], rows)], [_lines(prompt) for prompt in columns]
    Sheet(results["name"], "nothing quantized", names, "PSNR to whole", sections, 2 * PROMPTED, "whole").draw(out)


def _lines(prompt: str) -> str:
    """A caption in short lines: "small red / disc left of a / large blue / square", "small red / disc / at the top"."""
    words = prompt.split()[1:]
    two = "a" in words
    at = words.index("a") + 1 if two else len(words)
    parts = (words[:2], words[2:at], words[at : at + 2], words[at + 2 :]) if two else (words[:2], words[2:3], words[3:])
    return "\n".join(map(" ".join, parts))


def _figures(way: dict[str, Any]) -> tuple[str, ...]:
    """PSNR in dB and SSIM as texts; none for what the others are compared with."""
    return (f"{way['psnr_db']:.1f}", f"{way['ssim']:.3f}") if "psnr_db" in way else ()


def _numbers(way: dict[str, Any], right: float) -> str:
    """What a row of a sheet says at its end; `right`: the share of right pictures."""
    figures = " dB   ".join(_figures(way))
    return f"{figures}\n{100 * right:.0f} %" if figures else f"{100 * right:.0f} %"


def gallery_table(results: dict[str, Any]) -> str:
    """The table of a pipeline's ways as Markdown."""
    head = "| | | PSNR, dB | SSIM | colours | shapes | sizes | as prompted |"
    lines = [head, "|" + "---|" * 8]
    for way in results["ways"]:
        figures = _figures(way) or ("", "")
        shares = [f"{100 * share:.0f} %" for share in way["right"].values()]
        lines.append("| " + " | ".join((way["section"], way["label"], *figures, *shares)) + " |")
    return "\n".join(lines)


def step_cache_table(results: dict[str, Any]) -> str:
    """The table of the step cache's thresholds as Markdown."""
    head = "| format, threshold | steps computed | fewer | PSNR to 16 bit, dB | to its own without, dB | as prompted |"
    lines = [head, "|" + "---|" * 6]
    for way in results["ways"]:
        steps, computed = results["steps"], way["computed"]
        figures = [f"{way[key]:.1f}" if key in way else "" for key in ("psnr_db", "uncached_db")]
        cells = (way["label"], f"{computed:.1f} of {steps}", f"{steps / computed:.2f}x", *figures)
        lines.append("| " + " | ".join((*cells, f"{100 * way['right']['whole']:.0f} %")) + " |")
    return "\n".join(lines)


def program_table(results: dict[str, Any]) -> str:
    """The table of the program in C++ beside Python as Markdown."""
    head = "| | PSNR to 16 bit, dB | SSIM | to the same engines in Python | as prompted |"
    lines, count = [head, "|" + "---|" * 5], len(results["prompts"])
    for way in results["ways"]:
        figures = _figures(way) or ("", "")
        against = f"{way['python_db']:.1f} dB, {way['equal']} of {count} equal" if "python_db" in way else ""
        against = "equal" if way.get("equal") == count else against
        lines.append(
            "| " + " | ".join((way["label"], *figures, against, f"{100 * way['right']['whole']:.0f} %")) + " |"
        )
    return "\n".join(lines)


def tiles_table(results: dict[str, Any]) -> str:
    """The table of the ways to decode a large picture as Markdown."""
    head = "| | to the whole, dB | to what was drawn, dB | change at a seam, 1/255 | anywhere |"
    lines = [head, "|" + "---|" * 5]
    for way in results["ways"]:
        whole = _figures(way)[:1] or ("",)
        change = [f"{way[key]:.2f}" if key in way else "" for key in ("seam", "anywhere")]
        lines.append("| " + " | ".join((way["label"], *whole, f"{way['drawn_db']:.1f}", *change)) + " |")
    return "\n".join(lines)


def table(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    head = "| | method | rank | layers, dB | output, dB | PSNR, dB | SSIM | features | Frechet | right class |"
    lines = [head, "|" + "---|" * 10]
    for v in results["variants"]:
        cells = [
            v["section"],
            v["label"],
            str(v["rank"]),
            f"{v['layers_db']:.1f}",
            f"{v['output_db']:.1f}",
            *_figures(v),
            f"{v['feature_distance']:.4f}",
            f"{v['frechet']:.3f}",
            f"{100 * v['right_class']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
