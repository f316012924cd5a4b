"""``svdq-trt diff``: an engine's outputs against full precision, or against another engine."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.errors import EXIT_OK, AccuracyError, UsageError
from svdq_trt.base.files import atomic_write
from svdq_trt.base.terminal import say
from svdq_trt.cli.running import add_running, opening
from svdq_trt.contract.sizes import SIZES

if TYPE_CHECKING:
    from svdq_trt.evaluate.diff import Difference, Subject

NAME = "diff"
HELP = "compare an engine's outputs with an ONNX file's or another engine's"
EPILOG = """\
An engine folder runs in TensorRT where it has a plan and there is a GPU, else its model.onnx in ONNX Runtime; the
output says which. ONNX files run in ONNX Runtime, on the GPU where onnxruntime-gpu is installed. Signal and error are
measured against --against: SQNR = 10 log10(sum of its squares / sum of squared differences).

examples:
  svdq-trt diff engines/sdxl-sm_89 --against engines/sdxl-shared/model-fp16.onnx --min-sqnr 12
  svdq-trt diff engines/sdxl-sm_89 --against engines/sdxl-sm_120 --runtime onnx      two formats, without their GPUs
  svdq-trt diff engines/sdxl-sm_89 --against model-fp16.onnx --inputs step.safetensors --plot diff.png --json diff.json
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("candidate", type=Path, help="engine folder, its model.plan, or an .onnx file")
    p.add_argument("--against", type=Path, required=True, metavar="REFERENCE", help="the same choice")
    p.add_argument("--min-sqnr", type=float, metavar="DB", help="fail (exit code 3) below this SQNR of any output")
    i = p.add_argument_group("inputs (default: synthetic, at the smallest shape of the engine's profile)")
    i.add_argument("--inputs", type=Path, metavar="FILE", help=".safetensors with tensors named like the inputs")
    i.add_argument("--seed", type=int, default=0, help="of synthetic inputs (default 0)")
    i.add_argument("--model", metavar="NAME", help="whose inputs to make up, where neither side has a manifest")
    for name, unit in SIZES.items():
        i.add_argument(f"--{name}", type=int, metavar="N", help=unit)
    add_running(p)
    o = p.add_argument_group("output")
    o.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    o.add_argument("--plot", type=Path, metavar="PNG", help="write a scatter of each output")


def run(args: argparse.Namespace) -> int:
    if args.min_sqnr is not None and not math.isfinite(args.min_sqnr):
        raise UsageError("--min-sqnr", f"{args.min_sqnr}", "a finite number of dB")
    sizes = {name: getattr(args, name) for name in SIZES}
    if args.inputs is not None and any(sizes.values()):
        raise UsageError("--inputs", "given with sizes", "one of them", "The file's tensors have their own sizes.")
    from svdq_trt.evaluate.diff import compare_subjects, read_inputs, subject, synthetic_inputs
    from svdq_trt.runtime.choice import Opening

    candidate, reference = subject(args.candidate, args.runtime), subject(args.against, args.runtime)
    source: dict[str, Any]
    if args.inputs is not None:
        feed, source = read_inputs(args.inputs), {"file": str(args.inputs)}
    else:
        feed, chosen = synthetic_inputs((candidate, reference), args.model, sizes, args.seed)
        source = {"seed": args.seed, **chosen}
    how = Opening(**opening(args))
    for note in dict.fromkeys(s.note for s in (candidate, reference) if s.note):
        say(f"svdq-trt: {note}", file=sys.stderr)
    found = compare_subjects(candidate, reference, feed, how, lambda text: say(text, file=sys.stderr))
    _print(found, candidate, reference)
    if args.json is not None:
        with atomic_write(args.json) as tmp:
            tmp.write_text(json.dumps(_to_json(found, candidate, reference, source), indent=1) + "\n")
    if args.plot is not None:
        from svdq_trt.evaluate.plot import plot_outputs

        plot_outputs(found.outputs, found.reference, found.candidate, (reference.label, candidate.label), args.plot)
    if args.min_sqnr is not None and found.worst_db < args.min_sqnr:
        raise AccuracyError(candidate.label, f"{found.worst_db:.2f} dB", f"at least {args.min_sqnr:g} dB (--min-sqnr)")
    return EXIT_OK


def _print(found: Difference, candidate: Subject, reference: Subject) -> None:
    say(f"{candidate.label}: {found.seconds[1]:.2f} s", f"against {reference.label}: {found.seconds[0]:.2f} s")
    width = max(6, *(len(one.name) for one in found.outputs))
    say(f"{'output':{width}}  {'SQNR dB':>8}  {'cosine':>9}  {'max error':>10}  {'largest value':>13}")
    for one in found.outputs:
        say(f"{one.name:{width}}  {one.sqnr_db:8.2f}  {one.cosine:9.6f}  {one.max_abs:10.4g}  {one.ref_max_abs:13.4g}")


def _to_json(found: Difference, candidate: Subject, reference: Subject, source: dict[str, Any]) -> dict[str, Any]:
    from svdq_trt.artifact.manifest import to_json

    def finite(figures: dict[str, Any]) -> dict[str, Any]:  # equal outputs have infinite SQNR, which JSON lacks
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}

    def side(one: Subject, seconds: float) -> dict[str, Any]:
        return {"path": str(one.path), "runtime": one.where, "seconds": round(seconds, 4), "note": one.note}

    return {
        "candidate": side(candidate, found.seconds[1]),
        "reference": side(reference, found.seconds[0]),
        "inputs": source,
        "outputs": [finite(to_json(one)) for one in found.outputs],
    }
