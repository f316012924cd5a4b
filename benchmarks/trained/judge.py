"""Quantize a trained model in every way, sample pictures with equal seeds, and measure against the 16-bit model.

The quantizer runs in processes of its own, one per variant, the most important first, while pictures of finished ones
are sampled. Finished results are on disk.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svdq_trt.artifact import svdq_file
from svdq_trt.nn.restore import restore_model
from trained import metrics, scenes
from trained.linears import has_kernels, unpack
from trained.tasks import Predict, Task, sample
from trained.variants import Made, Variant, by_importance, calibrated, loaded, make

SAMPLER_STEPS = 25
PER_CLASS = 5
CALIBRATION_SAMPLES = 32
SHOWN = 10  # pictures kept of every variant, for the sheet

Trace = list[tuple[Tensor, Tensor, Tensor]]  # x_t, t, prediction along the 16-bit model's path


def judge(
    task: Task, work: Path, device: str, pool: Executor, rows: list[Variant], kernels: bool = True
) -> dict[str, Any]:
    """Judge `rows` for the model that `train` left in `work`; results are also in `work`/results.json as they come.

    Quantized linears run in the project's kernels where those are built and `kernels` is set, else in torch.
    `work`/pictures.safetensors has SHOWN pictures of each variant and of the 16-bit model, uint8 [SHOWN, 3, H, W].
    """
    begin = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    labels = torch.arange(scenes.CLASSES, device=device).repeat(PER_CLASS)
    noise = torch.randn(len(labels), 4, scenes.SIZE, scenes.SIZE, generator=torch.Generator().manual_seed(9)).to(device)
    trace: Trace = []
    reference = loaded(task.spec, work / "model.safetensors").to(device)
    want = sample(traced(runner(task, reference), trace), noise, labels, SAMPLER_STEPS)
    save_calibration_inputs(task, trace, labels, work)
    factors = sorted({v.outliers for v in rows})
    calibrations = [pool.submit(calibrated, task.name, work, factor) for factor in factors]
    net, accuracy = metrics.train_features(device)
    real = scenes.draw(labels, torch.Generator(device=device).manual_seed(11))
    kernels = kernels and has_kernels(device)
    results: dict[str, Any] = {
        "model": task.name,
        "parameters": sum(p.numel() for p in reference.parameters()),
        "training": json.loads((work / "training.json").read_text()),
        "pictures": len(labels),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "linears": "the project's kernels" if kernels else "torch",
        "sampler_steps": SAMPLER_STEPS,
        "classifier_accuracy": accuracy,
        "shown": chosen(labels).tolist(),
        "fp16": metrics.compare(net, want, real, labels),
        "variants": [],
    }
    print(f"{task.name} 16 bit: {100 * results['fp16']['right_class']:.0f} % right class", flush=True)
    shown = {"fp16": bytes_of(want)}
    for calibration in calibrations:
        calibration.result()
    print(f"{task.name}: sampled and calibrated in {time.perf_counter() - begin:.0f} s", flush=True)
    waiting = {pool.submit(make, task.name, work, variant): variant for variant in by_importance(rows)}
    done: dict[str, dict[str, Any]] = {}
    for future in as_done(waiting):
        variant, start = waiting[future], time.perf_counter()
        try:
            made = future.result()
            module = restore_model(svdq_file.load(made.path), task.spec)
            if not kernels:
                unpack(module)
            predict = runner(task, module.to(device))
            got = sample(predict, noise, labels, SAMPLER_STEPS)
            done[variant.key] = {
                "key": variant.key,
                "label": variant.label,
                "section": variant.section,
                "format": variant.format,
                "rank": variant.rank,
                "outliers": variant.outliers,
                "layers_db": made.layers_db,
                "output_db": along(predict, trace, labels),
                "quantize_s": made.seconds,
                **metrics.compare(net, got, want, labels),
            }
        except Exception:  # the other variants still count
            print(f"{task.name} {variant.key} failed:\n{traceback.format_exc()}", flush=True)
            continue
        shown[variant.key] = bytes_of(got)
        made.path.unlink()
        results["variants"] = [done[v.key] for v in rows if v.key in done]
        save(results, shown, work)
        row = done[variant.key]
        now = time.perf_counter()
        took = f"{made.seconds:.1f} + {now - start:.1f} s, at {now - begin:.0f} s"
        print(
            f"{task.name} {variant.key:<24} layers {made.layers_db:5.1f} dB, output {row['output_db']:5.1f} dB, "
            f"PSNR {row['psnr_db']:5.1f} dB, {took}",
            flush=True,
        )
    return results


def as_done(futures: Iterable[Future[Made]]) -> Iterator[Future[Made]]:
    """Yield the futures as they finish; of several finished ones, the earliest in the list first."""
    left = list(futures)
    while left:
        done = wait(left, return_when=FIRST_COMPLETED).done
        future = next(f for f in left if f in done)
        left.remove(future)
        yield future


def save(results: dict[str, Any], shown: dict[str, Tensor], work: Path) -> None:
    """Save both files so that a kill leaves them whole, with pictures of every variant in results.json."""
    save_file(shown, work / "pictures.new")
    os.replace(work / "pictures.new", work / "pictures.safetensors")
    (work / "results.new").write_text(json.dumps(results, indent=1) + "\n")
    os.replace(work / "results.new", work / "results.json")


def runner(task: Task, module: nn.Module) -> Predict:
    """The model as a function that predicts in f32; it runs in its act dtype."""
    spec = task.spec
    flat = spec.wrap(module)

    @torch.inference_mode()
    def predict(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        inputs = zip(spec.inputs, task.inputs(x, t, labels), strict=True)
        return task.output(flat(*(v.to(io.torch_dtype(spec.torch_dtype)) for io, v in inputs))).float()

    return predict


def traced(predict: Predict, trace: Trace) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A `predict` that remembers every call."""

    def remembering(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        y = predict(x, t, labels)
        trace.append((x, t, y))
        return y

    return remembering


def along(predict: Predict, trace: Trace, labels: Tensor) -> float:
    """SQNR in dB of the predictions at every third point of the 16-bit model's path, over all of them together."""
    noise = energy = 0.0
    for x, t, want in trace[::3]:
        noise += float((predict(x, t, labels) - want).square().sum())
        energy += float(want.square().sum())
    return 10 * math.log10(energy / max(noise, 1e-30))


def save_calibration_inputs(task: Task, trace: Trace, labels: Tensor, work: Path) -> None:
    """Save inputs from real sampling, one per picture: pictures are judged mostly at other points."""
    picks = torch.linspace(0, len(trace) - 1, CALIBRATION_SAMPLES).round().long().tolist()
    stacked: dict[str, list[Tensor]] = {io.name: [] for io in task.spec.inputs}
    for i, step in enumerate(picks):
        x, t, _ = trace[step]
        one = slice(i % len(x), i % len(x) + 1)
        for io, value in zip(task.spec.inputs, task.inputs(x[one], t[one], labels[one]), strict=True):
            stacked[io.name].append(value.float().cpu())
    tensors = {
        io.name: torch.cat(stacked[io.name]) if io.has_batch else stacked[io.name][0].clone() for io in task.spec.inputs
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, work / "calibration-inputs.safetensors")


def bytes_of(pictures: Tensor) -> Tensor:
    """The pictures [B, 4, H, W] as bytes of red, green and blue; coverage is left out."""
    return ((chosen(pictures)[:, :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().contiguous()


def chosen(batch: Tensor) -> Tensor:
    """SHOWN entries of a batch whose labels count up: every hue and shape appears."""
    return batch[(17 * torch.arange(SHOWN) + 3) % len(batch)]
