"""``svdq-trt build``: checkpoint to engine folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.errors import EXIT_INCOMPLETE, EXIT_OK, UsageError
from svdq_trt.base.terminal import say
from svdq_trt.cli.warm import add_no_warm, warm_if_here
from svdq_trt.contract.archs import ATTENTION_MEASURED, AUTO_FORMAT, KERNELS, parse_arch
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sizes import SIZES, VAE_TILE
from svdq_trt.quantize.preset import DEFAULT_PRESET

if TYPE_CHECKING:
    from svdq_trt.build.config import Sampling
    from svdq_trt.build.run import Built

RANK = "32"  # where none is given
_CHUNKS = " (for SDXL 77 a chunk: long prompts of three chunks need 77:77:231)"
#: options that mean nothing where nothing is quantized
_OF_QUANTIZER = (
    "rank",
    "budget_bytes",
    "target_sqnr",
    "sensitivity",
    "preset",
    "calibration",
    "calibration_prompts",
    "skip",
)

NAME = "build"
HELP = "checkpoint -> engine folder"
EPILOG = """\
examples:
  svdq-trt build --model sdxl-tiny --arch sm_89 --random-weights 0 --preset fast    a minute, no download
  svdq-trt build --model sdxl --arch sm_89 --checkpoint ./sdxl-base     a diffusers folder
  svdq-trt build --model sdxl --arch sm_89 --checkpoint my.safetensors  a single file
  svdq-trt build --model flux1-dev --arch sm_89 --quantized svdq-int4_r32-flux.1-dev.safetensors   nunchaku's file
  svdq-trt build --model sdxl --arch sm_86 --arch sm_120 --min-sqnr 15  two engines, gated
  svdq-trt build --model sdxl --arch sm_89 --rank auto --budget-bytes 1.4GB    a rank per layer, as much as fits
  svdq-trt build --model sdxl --arch sm_89 --checkpoint ./sdxl-base --tokens 77:77:231   long prompts
  svdq-trt build --model sdxl --arch sm_89 --pipeline ./sdxl-base       text encoders and VAE, too
  svdq-trt build --model sdxl --arch sm_89 --lora style.safetensors:0.8 with a LoRA inside
"""


def add_quantization(p: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options shared with `svdq-trt quantize`: model, archs, weights, quantizer. Returns the weights' group."""
    archs = ", ".join(f"sm_{a}" for a in KERNELS)
    auto = "; ".join(f"sm_{a} {f.name}" for a, (f, _) in AUTO_FORMAT.items())
    p.add_argument("--model", required=True, help="a name from `svdq-trt models`, or a diffusers folder")
    p.add_argument("--arch", action="append", required=True, metavar="SM", help=f"target GPU, repeatable: {archs}")
    source = p.add_argument_group("weights (default: the model's hub id, from the local cache first)")
    source.add_argument("--checkpoint", metavar="PATH", help="diffusers folder, one .safetensors, or a hub id")
    source.add_argument("--random-weights", type=int, metavar="SEED", help="made-up weights with realistic outliers")
    q = p.add_argument_group("quantization")
    q.add_argument("--format", default="auto", help=f"auto ({auto}) or {', '.join(FORMATS)}")
    q.add_argument(
        "--rank",
        metavar="R",
        help=f"rank of the 16-bit branch (default {RANK}), or auto: one per "
        "node, for what --budget-bytes or --target-sqnr ask (docs/allocation.md)",
    )
    q.add_argument("--budget-bytes", metavar="N", help="--rank auto: most bytes of the quantized nodes, as 2.2GB")
    q.add_argument(
        "--target-sqnr",
        type=float,
        metavar="DB",
        help="--rank auto: fewest bytes predicted to give this SQNR; with --sensitivity",
    )
    q.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="--rank auto: what each node does to the output, by `svdq-trt sensitivity`",
    )
    q.add_argument("--preset", help=f"how hard to search: fast, default or best (default {DEFAULT_PRESET})")
    q.add_argument(
        "--calibration", type=Path, metavar="FILE", help="safetensors with model inputs, stacked; default: synthetic"
    )
    q.add_argument(
        "--calibration-prompts",
        type=Path,
        metavar="FILE",
        help="instead: run these prompts, one per line, through a diffusers pipeline and record the inputs",
    )
    q.add_argument("--calibration-pipeline", type=Path, metavar="DIR", help="its folder (default: --checkpoint)")
    q.add_argument("--calibration-samples", type=int, metavar="N", help="steps to record (default 16)")
    q.add_argument("--calibration-steps", type=int, metavar="N", help="denoising steps (default 20)")
    q.add_argument("--calibration-guidance", type=float, metavar="G", help="default: the pipeline's own")
    q.add_argument("--calibration-seed", type=int, metavar="S", help="of the noise (default 0)")
    add_skip(q)
    q.add_argument(
        "--device",
        default="auto",
        help="of recording, calibration and quantizer: auto (the GPU where "
        "there is one), cpu or cuda; torchrun --nproc-per-node N uses N GPUs",
    )
    return source


def add_skip(p: argparse._ActionsContainer) -> None:
    """Add the option that keeps linears in 16 bit."""
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keep linears in 16 bit, repeatable: a name with wildcards, or '<2M': nodes with fewer weights",
    )


def add_output(p: argparse.ArgumentParser) -> None:
    """Add the options for where `svdq-trt build` and `svdq-trt quantize` write, and whether they reuse results."""
    p.add_argument("--out", type=Path, default=Path("engines"), metavar="DIR", help="default ./engines")
    p.add_argument("--force", action="store_true", help="run every stage again")


def add_options(p: argparse.ArgumentParser) -> None:
    source = add_quantization(p)
    source.add_argument(
        "--quantized",
        type=Path,
        metavar="PATH",
        help="a quantized checkpoint instead: our svdq.safetensors or another tool's (see import); "
        "--checkpoint is then what the check compares with",
    )
    source.add_argument(
        "--pipeline",
        type=Path,
        metavar="DIR",
        help="a whole diffusers pipeline, whose text encoders and VAE become engines too, for `svdq-trt run`; without "
        "other weights the denoiser's are read there",
    )
    source.add_argument(
        "--quantize-text",
        "--quantize-t5",
        action="store_true",
        help="with --pipeline: its T5 or language model in 4 bits as well",
    )
    source.add_argument(
        "--vae-tile",
        type=int,
        default=VAE_TILE,
        metavar="PIXELS",
        help="with --pipeline: larger pictures go through the VAE by tiles of that side, which bounds its memory "
        "(default %(default)s)",
    )
    lo = p.add_argument_group("LoRA (docs/lora.md)")
    lo.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:STRENGTH]",
        help=".safetensors, repeatable; joins the 16-bit branch: nothing is quantized again",
    )
    lo.add_argument(
        "--lora-slots",
        type=int,
        default=0,
        metavar="R",
        help="rank per linear to fill at run time: Session.set_lora; 0 none (default)",
    )
    lo.add_argument("--allow-partial", action="store_true", help="leave out LoRA tensors that do not fit")
    e = p.add_argument_group("engine")
    for name, unit in SIZES.items():
        note = _CHUNKS if name == "tokens" else ""
        e.add_argument(f"--{name}", metavar="MIN:OPT:MAX", help=f"{unit}{note}; one number fixes it")
    e.add_argument(
        "--controlnet",
        action="store_true",
        help="the engine takes a ControlNet's residuals as well, where a pipeline gives them (docs/runtime.md)",
    )
    e.add_argument("--backend", default="auto", help="auto, tensorrt-rtx (builds for other GPUs) or tensorrt")
    e.add_argument(
        "--fuse-mlp",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one op for two linears with GELU, GEGLU or SwiGLU between them (int4 and nvfp4)",
    )
    measured = "; ".join(f"sm_{a} {', '.join(map(str, sizes))}" for a, sizes in ATTENTION_MEASURED.items())
    e.add_argument(
        "--attention",
        default="auto",
        help=f"whose: plugin, tensorrt, or auto (default): the plugin's for head sizes where it was measured "
        f"faster ({measured}), else TensorRT's",
    )
    e.add_argument(
        "--weight-streaming",
        action="append",
        nargs="?",
        default=[],
        metavar="PART",
        help="the engine, with --pipeline every one, can keep weights in host memory: Session(weight_budget=...), run "
        "and bench --weight-budget; with PART, repeatable, that of a pipeline's part alone, such as text_encoder_2",
    )
    e.add_argument(
        "--step-cache",
        action="store_true",
        help="the engine can skip a transformer's blocks at steps that change little: Session.step_cache, run "
        "--step-cache (docs/runtime.md)",
    )
    add_no_warm(e)
    c = p.add_argument_group("check")
    c.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with the 16-bit model in ONNX Runtime: on calibration's own inputs where there are any, else on "
        "synthetic ones of the smallest shape",
    )
    c.add_argument("--min-sqnr", type=float, metavar="DB", help="fail (exit code 3) below this output SQNR")
    add_output(p)


def quantization(args: argparse.Namespace) -> dict[str, Any]:
    """BuildConfig's fields from the options of `add_quantization` and `add_output`."""
    archs = tuple(dict.fromkeys(parse_arch(text) for text in args.arch))  # before torch loads: typos answer at once
    from svdq_trt.build.config import RankAuto

    asked = RANK if args.rank is None else args.rank
    rank, rank_auto = RankAuto.parse(asked, args.budget_bytes, args.target_sqnr, args.sensitivity)
    return {
        "sampling": _sampling(args),
        "rank_auto": rank_auto,
        "model": args.model,
        "archs": archs,
        "out": args.out,
        "checkpoint": args.checkpoint,
        "random_weights": args.random_weights,
        "format": args.format,
        "rank": rank,
        "preset": DEFAULT_PRESET if args.preset is None else args.preset,
        "device": args.device,
        "calibration": args.calibration,
        "skip": tuple(args.skip),
        "force": args.force,
    }


def _sampling(args: argparse.Namespace) -> Sampling | None:
    """The options of the pipeline run for --calibration-prompts."""
    settings = {
        name: getattr(args, f"calibration_{name}") for name in ("pipeline", "samples", "steps", "guidance", "seed")
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if args.calibration_prompts is None:
        if given:
            raise UsageError(f"--calibration-{next(iter(given))}", "given alone", "--calibration-prompts with it")
        return None
    from svdq_trt.build.config import Sampling

    return Sampling(**{"pipeline": Path(args.checkpoint or ""), "prompts": args.calibration_prompts} | given)


def _check_quantized(args: argparse.Namespace) -> None:
    """Refuse options of the quantizer next to --quantized, which replaces it. Raises UsageError."""
    given = [name for name in _OF_QUANTIZER if getattr(args, name) not in (None, [])]
    if args.quantized is not None and given:
        option = given[0].replace("_", "-")
        raise UsageError("--quantized", f"given with --{option}", "it alone: nothing is quantized then")


def run(args: argparse.Namespace) -> int:
    _check_quantized(args)
    if args.pipeline is not None and args.checkpoint is args.random_weights is args.quantized is None:
        args.checkpoint = str(args.pipeline)
    common = quantization(args)
    from svdq_trt.build.config import BuildConfig, LoraOption, Range
    from svdq_trt.models.spec import WITH_CONTROLNET

    if args.controlnet:
        common["model"] += WITH_CONTROLNET
    ranges: dict[str, Any] = {
        name: None if text is None else Range.parse(f"--{name}", text)
        for name, text in ((name, getattr(args, name)) for name in SIZES)
    }
    check = args.check
    if args.quantized is not None and args.checkpoint is None and args.random_weights is None and args.min_sqnr is None:
        check = False  # the file holds no 16-bit weights to compare with
    config = BuildConfig(
        **common,
        **ranges,
        backend=args.backend,
        check=check,
        min_sqnr=args.min_sqnr,
        quantized=args.quantized,
        pipeline=args.pipeline,
        quantize_text=args.quantize_text,
        vae_tile=args.vae_tile,
        loras=tuple(LoraOption.parse(text) for text in args.lora),
        lora_slots=args.lora_slots,
        allow_partial=args.allow_partial,
        fuse_mlp=args.fuse_mlp,
        attention=args.attention,
        weight_streaming=None in args.weight_streaming,
        streamed_parts=tuple(part for part in args.weight_streaming if part is not None),
        step_cache=args.step_cache,
    )
    from svdq_trt.build.run import build, gate
    from svdq_trt.build.summary import print_summary

    built = build(config)
    print_summary(built)
    for one in built if args.warm else ():
        if one.incomplete is None:
            warm_if_here(one.engine.folder)
    code = _report_incomplete(built)
    if config.min_sqnr is not None:
        gate(built, config.min_sqnr)
    return code


def _report_incomplete(built: Sequence[Built]) -> int:
    from svdq_trt.artifact.manifest import finish_command

    missing = [one for one in built if one.incomplete is not None]
    for one in missing:
        arch = one.manifest.arch
        say(
            f"{one.engine.folder}: no plan: {one.incomplete} Everything else is written. "
            f"On a machine with an {arch} GPU and TensorRT: {finish_command(one.engine.folder)}"
        )
    return EXIT_INCOMPLETE if missing else EXIT_OK
