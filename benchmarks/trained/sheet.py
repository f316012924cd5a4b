"""The results for people: a contact sheet and a chart as PNG, a table as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

COLUMNS = 12


def contact_sheet(results: dict[str, Any], work: Path, out: Path) -> None:
    """One row per variant, the same prompts and seeds in every row, the 16-bit model on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [("fp16", "16 bit")] + [
        (v["key"], f"{v['format']}: {v['label']}\n{v['psnr_db']:.1f} dB") for v in results["variants"]
    ]
    figure, axes = plt.subplots(len(rows), 1, figsize=(COLUMNS * 0.62 + 2.4, len(rows) * 0.62))
    for axis, (key, label) in zip(axes, rows, strict=True):
        pictures = torch.load(work / f"{key}.pt")
        step = max(len(pictures) // COLUMNS, 1)
        strip = torch.cat(list(pictures[step // 2 :: step][:COLUMNS]), 2)
        axis.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=0.26, right=0.995, top=0.995, bottom=0.005, hspace=0.04)
    figure.savefig(out, dpi=80)
    plt.close(figure)
    _shrink(out)


def _shrink(path: Path) -> None:
    """Fewer colours: the sheet is in the repository."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    head = "| format | method | rank | layers, dB | output, dB | PSNR, dB | SSIM | features | Frechet | right class |"
    lines = [head, "|" + "---|" * 10]
    for v in results["variants"]:
        cells = [v["format"], v["label"], str(v["rank"]), f"{v['layers_db']:.1f}", f"{v['output_db']:.1f}",
                 f"{v['psnr_db']:.1f}", f"{v['ssim']:.3f}", f"{v['feature_distance']:.4f}", f"{v['frechet']:.3f}",
                 f"{100 * v['right_class']:.0f} %"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
