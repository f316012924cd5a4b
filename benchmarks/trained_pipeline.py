#!/usr/bin/env python3
"""Train two small text-to-image pipelines, and make their pictures in 16 bit, quantized and with a LoRA.

    python benchmarks/trained_pipeline.py --out trained
    python benchmarks/trained_pipeline.py --out trained --stage pictures --engines engines    # again, with engines
    python benchmarks/trained_pipeline.py --out trained --device cpu --steps 2 --scenes 8 --prompts 2 --preset fast
    python benchmarks/trained_pipeline.py --out trained --step-cache    # of flux1-shapes, once it is trained
    python benchmarks/trained_pipeline.py --out trained --tiles         # of the autoencoder
    python benchmarks/trained_pipeline.py --out trained --cpp build-cpp/text_to_image    # beside Python, the same
    python benchmarks/trained_pipeline.py --out trained --publish    # existing results, into docs/

Weights from a hub are not needed: an autoencoder, text encoders and the denoisers (sdxl-tiny, and a wider flux1-tiny)
learn from drawn scenes with captions, from a seed. First the autoencoder is trained, then both pipelines side by side,
each with a LoRA of another style.

Output: WORK/<name>/ is a diffusers folder, WORK/<name>-ink/ its LoRA; OUT/<name>.json, .png and .safetensors are the
results, the sheet and all pictures. Engines of a pipeline, for --engines:

    svdq-trt build --model WORK/<name> --pipeline WORK/<name> --arch sm_90 --height 128 --width 128 --out engines
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import script
import torch
from trained import jobs
from trained.pipelines import PIPELINES
from trained.teach import RECORD, Effort, lora_folder, teach_pipeline, teach_vae
from trained.train import MODES, prepare

VAE, FLUX = "vae", "flux1-shapes"
EFFORTS = {
    VAE: Effort(seconds=70, batch=32, lr=2e-3),
    "sdxl-shapes": Effort(seconds=90, batch=256, lr=8e-4),
    "flux1-shapes": Effort(seconds=90, batch=256, lr=1e-3),
}
#: The first mode of training. FLUX's backward pass in bf16 ended in CUBLAS_STATUS_EXECUTION_FAILED on an H200.
FIRST_MODE = {VAE: "bf16-graph", "sdxl-shapes": "bf16-graph", "flux1-shapes": "tf32-graph"}
STYLE = Effort(seconds=25, batch=128, lr=1e-3, scenes=16384)  # the LoRAs


def main() -> int:
    args = arguments()
    args.work = args.work or args.out / "work"
    args.prompts = args.prompts or (8 if args.cpp else 48)
    if args.publish:
        from trained.publish import publish_pipelines

        return publish_pipelines(args.out, args.pipeline)
    if args.own_process:
        _one(args, args.part)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    if args.step_cache:
        _step_cache(args)
        return 0
    if args.tiles:
        _tiles(args)
        return 0
    if args.cpp:
        _by_program(args)
        return 0
    end = time.monotonic() + args.limit
    if args.stage != "pictures" and tried(args, end, VAE):
        return 1
    with ThreadPoolExecutor(len(args.pipeline)) as threads:  # side by side: one's GPU work fills the other's pauses
        codes = list(threads.map(partial(tried, args, end), args.pipeline))
    for name in args.pipeline if args.stage != "train" else ():
        report(args.out, name)
    return 1 if any(codes) else 0


def tried(args: argparse.Namespace, end: float, name: str) -> int:
    """The exit code for one part: the autoencoder, or a pipeline."""
    folder = args.work / name
    trained = (folder if name == VAE else lora_folder(folder)) / RECORD
    if args.stage != "pictures":
        trained.unlink(missing_ok=True)
    if args.stage != "train":
        (args.out / f"{name}.json").unlink(missing_ok=True)
    return jobs.tried(name, lambda mode: start(args, name, mode), args.mode or FIRST_MODE[name], trained, end)


def start(args: argparse.Namespace, name: str, mode: str) -> subprocess.Popen[bytes]:
    """Start a process for one part."""
    keys = ("out", "work", "stage", "device", "steps", "scenes", "prompts", "sampler-steps", "preset", "engines")
    given = {key: getattr(args, key.replace("-", "_")) for key in keys}
    return jobs.start(__file__, {**{k: v for k, v in given.items() if v is not None}, "part": name}, mode)


def _one(args: argparse.Namespace, name: str) -> None:
    """Train one part, and make its pictures."""
    if args.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    given = {key: getattr(args, key) for key in ("steps", "scenes") if getattr(args, key) is not None}
    effort, style = replace(EFFORTS[name], **given), replace(STYLE, **given)
    if args.scenes is not None:
        effort, style = (replace(e, batch=min(e.batch, e.scenes)) for e in (effort, style))
    if args.stage != "pictures":
        prepare(args.device, args.mode)
        if name == VAE:
            teach_vae(args.work / VAE, effort, args.device, args.mode)
        else:
            kind, vae, out = PIPELINES[name], args.work / VAE, args.work / name
            teach_pipeline(kind, vae, out, effort, style, args.device, args.mode)
    if args.stage != "train" and name != VAE:
        from trained.gallery import gallery

        gallery(PIPELINES[name], args.work, args.out, engines=args.engines, **_of_pictures(args))


def _of_pictures(args: argparse.Namespace) -> dict[str, Any]:
    """What `gallery` and `step_cache` are told by keywords."""
    return {"count": args.prompts, "steps": args.sampler_steps, "device": args.device, "preset": args.preset}


def _step_cache(args: argparse.Namespace) -> None:
    """Make the pictures with the step cache, of a pipeline that is trained."""
    from trained.sheet import STEP_CACHE
    from trained.step_cache import step_cache

    step_cache(PIPELINES[FLUX], args.work, args.out, **_of_pictures(args))
    report(args.out, FLUX + STEP_CACHE)


def _tiles(args: argparse.Namespace) -> None:
    """Make pictures whole and by tiles with the autoencoder, once it is trained."""
    from trained.sheet import TILES
    from trained.tiles import tiles

    tiles(args.work, args.out, count=args.prompts, device=args.device)
    report(args.out, TILES)


def _by_program(args: argparse.Namespace) -> None:
    """Make the pictures by the program in C++ and by Python, of pipelines that are trained."""
    from trained.program import by_program
    from trained.sheet import PROGRAM

    for name in args.pipeline:
        by_program(PIPELINES[name], args.work, args.out, program=args.cpp.resolve(), **_of_pictures(args))
        report(args.out, name + PROGRAM)


def report(out: Path, name: str) -> None:
    """Draw the sheet of a pipeline and print its table, as far as there are results."""
    from safetensors.torch import load_file
    from trained import sheet

    if not (out / f"{name}.json").exists():
        print(f"\n{name}: no results")
        return
    results, pictures = json.loads((out / f"{name}.json").read_text()), load_file(out / f"{name}.safetensors")
    draw = sheet.tiles_sheet if name == sheet.TILES else sheet.gallery_sheet
    draw(results, pictures, out / f"{name}.png")
    tables = {
        sheet.STEP_CACHE: sheet.step_cache_table,
        sheet.PROGRAM: sheet.program_table,
        sheet.TILES: sheet.tiles_table,
    }
    table = next((table for suffix, table in tables.items() if name.endswith(suffix)), sheet.gallery_table)
    print(f"\n{name}, {len(results['prompts'])} prompts\n\n{table(results)}", flush=True)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--work", type=Path, metavar="DIR", help="default: OUT/work")
    p.add_argument("--pipeline", nargs="+", default=list(PIPELINES), choices=list(PIPELINES))
    p.add_argument("--stage", default="all", choices=("all", "train", "pictures"))
    p.add_argument("--steps", type=int, help="of every training, at most (default: as many as fit into its seconds)")
    p.add_argument("--scenes", type=int, help="that a training draws from (default: 65536, for the LoRAs 16384)")
    p.add_argument("--prompts", type=int, help="of which pictures are made (default 48, with --cpp 8)")
    p.add_argument("--sampler-steps", type=int, default=20, help="of denoising (default 20)")
    p.add_argument("--preset", default="default", help="of the quantizer (default: default)")
    p.add_argument("--engines", type=Path, metavar="DIR", help="engines that svdq-trt build --out DIR made")
    p.add_argument("--limit", type=float, default=86400, metavar="S", help="end after S seconds")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument(
        "--mode",
        choices=MODES,
        help="of training; after an error the next one is tried (default: bf16-graph, tf32-graph for flux1-shapes)",
    )
    p.add_argument("--step-cache", action="store_true", help="make pictures with the step cache, and nothing else")
    p.add_argument("--tiles", action="store_true", help="make pictures by tiles of the autoencoder, and nothing else")
    p.add_argument(
        "--cpp",
        type=Path,
        metavar="PROGRAM",
        help="make pictures with examples/cpp's text_to_image and with Python, by the same engines, and nothing else",
    )
    p.add_argument("--publish", action="store_true", help="write docs/ from the results in OUT, and do nothing else")
    p.add_argument("--own-process", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--part", choices=list(EFFORTS), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.cpp and not args.cpp.is_file():
        p.error(f"--cpp {args.cpp}: no such file, want examples/cpp's text_to_image")
    return args


if __name__ == "__main__":
    script.run(main)
