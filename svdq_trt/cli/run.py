"""``svdq-trt run``: a prompt to a picture, on engines alone."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.extras import required_by
from svdq_trt.base.terminal import say
from svdq_trt.cli.running import add_running, add_weight_budget, opening, weight_budgets

if TYPE_CHECKING:
    from svdq_trt.build.config import LoraOption
    from svdq_trt.runtime.generate import Times

NAME = "run"
HELP = "prompt -> picture, by the engines of `svdq-trt build --pipeline`"
EPILOG = """\
The engines run in TensorRT where they have plans and there is a GPU, else their ONNX files in ONNX Runtime, slowly.
What is not given is the pipeline's own default, and for the size what the engine is tuned for. --image starts from a
picture, which gets that size; with --mask only what is white there is painted anew. ControlNet and IP-Adapter are not
there.

examples:
  svdq-trt run engines/sdxl-sm_89 --prompt "a photo of a fox" --out fox.png
  svdq-trt run engines/sdxl-sm_89 --prompt "a fox" --negative "blurry" --steps 30 --guidance 6 --seed 7 --size 1024x768
  svdq-trt run engines/flux1-dev-sm_89 --prompt "a fox" --batch 2 --lora style.safetensors:0.8
  svdq-trt run engines/sdxl-sm_89 --prompt "a fox in snow" --image fox.png --strength 0.6
  svdq-trt run engines/sdxl-sm_89 --prompt "a red hat" --image fox.png --mask head.png
  svdq-trt run engines/flux1-dev-sm_89 --prompt "a fox" --step-cache 0.1
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder of engines with pipeline.json")
    p.add_argument("--prompt", required=True, metavar="TEXT")
    p.add_argument("--negative", metavar="TEXT", help="what to keep away from")
    p.add_argument("--steps", type=int, metavar="N", help="of denoising")
    p.add_argument("--guidance", type=float, metavar="G", help="scale of the guidance")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of the first picture's noise (default 0)")
    p.add_argument("--size", metavar="WxH", help="of the picture in pixels; one number for a square")
    p.add_argument("--image", type=Path, metavar="FILE", help="a picture to start from")
    p.add_argument("--strength", type=float, metavar="S", help="with --image: how much it is changed, up to 1")
    p.add_argument("--mask", type=Path, metavar="FILE", help="with --image: white where it is painted anew")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at once: out-0.png, ... (default 1)")
    p.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:STRENGTH]",
        help=".safetensors, repeatable; for engines built with --lora-slots",
    )
    p.add_argument(
        "--step-cache",
        type=float,
        default=0.0,
        metavar="T",
        help="skip the blocks at steps whose first block changes by less, such as 0.1; for engines built with "
        "--step-cache",
    )
    p.add_argument("--out", type=Path, default=Path("out.png"), metavar="PNG", help="default ./out.png")
    add_running(p)
    add_weight_budget(p)


def run(args: argparse.Namespace) -> int:
    width, height = (None, None) if args.size is None else _size(args.size)
    if args.out.suffix.lower() != ".png":
        raise UsageError("--out", f"'{args.out}'", "a .png file")
    with required_by("svdq-trt run"):
        from svdq_trt.artifact import manifest
        from svdq_trt.runtime.loading import load, slowest_opening
        from svdq_trt.runtime.request import Request
        from svdq_trt.runtime.step_cache import check_step_cache

    request = Request(
        args.prompt,
        args.negative,
        args.steps,
        args.guidance,
        args.seed,
        width,
        height,
        args.batch,
        args.image,
        args.strength,
        args.mask,
    )
    loras = [(lora.path, lora.strength) for lora in _loras(args.lora)]
    budgets = weight_budgets(args.weight_budget, args.engine)
    if args.step_cache:
        check_step_cache(args.step_cache, in_pieces=bool(manifest.read(args.engine).onnx.pieces))
    started = time.perf_counter()
    pipe: Any = load(args.engine, runtime=args.runtime, weight_budget=budgets, **opening(args))
    opened = time.perf_counter() - started
    name, seconds = slowest_opening(pipe)
    parts = ", ".join(f"{part} {each:.1f} s" for part, each in seconds.items())
    say(f"engines opened in {opened:.1f} s; the slowest, {name}: {parts}", file=sys.stderr)
    from svdq_trt.models.denoiser import attached
    from svdq_trt.runtime.generate import generate

    session: Any
    (session,) = (one.runner for one in attached(pipe).values())
    session.step_cache = args.step_cache
    if loras:
        session.set_lora(loras)
    images, times = generate(pipe, request)
    for path, image in zip(_paths(args.out, len(images)), images, strict=True):
        _save(image, path)
        say(path)
    where = "ONNX Runtime" if type(session).__name__ == "OnnxSession" else "TensorRT"
    say(f"{where}: {_described(times)}", file=sys.stderr)
    return EXIT_OK


def _size(text: str) -> tuple[int, int]:
    """Width and height of ``1024x768`` or ``1024``. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if found is None:
        raise UsageError("--size", f"'{text}'", "WIDTHxHEIGHT in pixels, or one number for a square")
    return int(found[1]), int(found[2] or found[1])


def _loras(texts: list[str]) -> list[LoraOption]:
    """The LoRA files of the options. Raises UsageError."""
    if not texts:
        return []
    from svdq_trt.build.config import LoraOption

    found = [LoraOption.parse(text) for text in texts]
    for lora in found:
        lora.check()
    return found


def _paths(out: Path, count: int) -> list[Path]:
    """Where pictures go: `out` for one, `out` with -0, -1, ... for several."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]


def _save(image: Any, path: Path) -> None:
    from svdq_trt.base.files import atomic_write

    with atomic_write(path) as tmp:
        image.save(tmp, format="PNG")


def _described(times: Times) -> str:
    """``text 0.12 s, 30 steps 4.10 s (0.137 s each), VAE 0.31 s``.

    With a step cache ``30 steps (18 computed) 2.60 s``; ``30 steps (60 runs) 8.20 s`` where guidance runs the denoiser
    twice in a step, with both ``30 steps (60 runs, 36 computed) 5.20 s``.
    """
    words = []
    for part, seconds in times.seconds.items():
        each = f"{seconds:.2f} s"
        if part == "steps":
            runs = times.runs[part]
            counts = [f"{runs} runs"] * (runs != times.steps)
            counts += [f"{runs - times.skipped} computed"] * (times.skipped > 0)
            told = f" ({', '.join(counts)})" if counts else ""
            words.append(f"{times.steps} {part}{told} {each} ({seconds / times.steps:.3f} s each)")
        else:
            words.append(f"{part} {each}")
    return ", ".join(words)
