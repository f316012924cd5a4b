"""The results for people: a contact sheet as PNG, a table as Markdown. Drawn by Pillow, which torchvision brings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trained import scenes

SIDE = 64  # side of a picture on the sheet: twice its pixels, which costs few bytes in a PNG
GAP = 2
LABEL, NUMBERS = 190, 150  # widths of the text at the left and at the right
DIFFERENCES, GAIN = 4, 8  # pictures of |quantized - 16 bit|, and how much it is enlarged
HEAD, SECTION = 64, 24  # heights of the sheet's and of a section's title
BLACK, GREY, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
CUBE = (0, 128, 255)  # levels of red, green and blue for colours that the 16-bit pictures do not have


def contact_sheet(results: dict[str, Any], pictures: dict[str, Tensor], out: Path) -> None:
    """Draw a row per variant and a column per prompt and seed, the 16-bit model on top of every section.

    Args:
        results: from judge.judge. pictures: key -> uint8 [B, 3, H, W], from its pictures.safetensors.
    """
    sections = [(name, list(rows)) for name, rows in itertools.groupby(results["variants"], lambda v: v["section"])]
    columns = len(pictures["fp16"])
    width = LABEL + (columns + DIFFERENCES) * (SIDE + GAP) + GAP * 4 + NUMBERS
    height = HEAD + sum(SECTION + (1 + len(rows)) * (SIDE + GAP) for _, rows in sections) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    middle = LABEL + columns * (SIDE + GAP) + GAP * 4  # where the difference pictures begin
    right = middle + DIFFERENCES * (SIDE + GAP) + 8
    draw.text((8, 8), results["model"], BLACK, _font(18))
    draw.text((8, 32), f"{results['sampler_steps']} steps, equal seeds", GREY, _font(12))
    for column, label in enumerate(results["shown"]):
        names = f"{scenes.HUES[label % len(scenes.HUES)]}\n{scenes.SHAPES[label // len(scenes.HUES)]}"
        x = LABEL + column * (SIDE + GAP) + SIDE // 2
        draw.multiline_text((x, HEAD - 4), names, GREY, _font(11), anchor="md", align="center")
    draw.multiline_text((middle, HEAD - 4), f"{GAIN} x difference\nfrom 16 bit", GREY, _font(11), anchor="ld")
    draw.multiline_text((right, HEAD - 4), "PSNR       SSIM\nright class", GREY, _font(11), anchor="ld")
    y = HEAD
    want = pictures["fp16"].int()
    for name, rows in sections:
        draw.text((8, y + 5), name, BLACK, _font(14))
        draw.line((8, y + SECTION - 2, width - 8, y + SECTION - 2), GREY)
        y += SECTION
        exact = {"key": "fp16", "label": "16 bit", "right_class": results["fp16"]["right_class"]}
        for row in (exact, *rows):
            got = pictures[row["key"]]
            draw.text((8, y + SIDE // 2), row["label"], BLACK, _font(13), anchor="lm")
            _strip(sheet, got, LABEL, y)
            if row is not exact:
                _strip(sheet, (GAIN * (got.int() - want).abs())[:DIFFERENCES].clamp(max=255).byte(), middle, y)
            numbers = f"{row['psnr_db']:.1f} dB   {row['ssim']:.3f}\n" if row is not exact else ""
            numbers += f"{100 * row['right_class']:.0f} %"
            draw.multiline_text((right, y + SIDE // 2), numbers, BLACK, _font(13), anchor="lm")
            y += SIDE + GAP
    sheet.quantize(palette=_palette(pictures["fp16"]), dither=Image.Dither.NONE).save(out, optimize=True)


def _palette(pictures: Tensor) -> Image.Image:
    """256 colours, to keep the sheet in the repository small: most of them from pictures that came out right."""
    cube = [level for colour in itertools.product(CUBE, repeat=3) for level in colour]
    count = 256 - len(cube) // 3
    strip = Image.fromarray(pictures.permute(0, 2, 3, 1).flatten(0, 1).numpy())
    strip = strip.quantize(count, Image.Quantize.MAXCOVERAGE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(strip.getpalette() or [])[: 3 * count], *cube])
    return palette


def _strip(sheet: Image.Image, pictures: Tensor, x: int, y: int) -> None:
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x + i * (SIDE + GAP), y))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


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
            f"{v['psnr_db']:.1f}",
            f"{v['ssim']:.3f}",
            f"{v['feature_distance']:.4f}",
            f"{v['frechet']:.3f}",
            f"{100 * v['right_class']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
