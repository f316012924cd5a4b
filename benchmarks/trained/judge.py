"""Quantize a trained model in every way, sample pictures with equal seeds, and measure against the 16-bit model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svdq_trt import calibrate
from svdq_trt.calibrate.inputs import has_batch
from trained import metrics, scenes
from trained.variants import Variant, amplify, make, variants

SAMPLER_STEPS = 25
PER_CLASS = 5
CALIBRATION_SAMPLES = 32


def judge(task: Any, checkpoint: Path, work: Path, device: str, rows: list[Variant] | None = None) -> dict[str, Any]:
    """Results of every variant; pictures go to `work`/<key>.pt as uint8 [B, 3, H, W]."""
    spec = task.spec
    labels = torch.arange(scenes.CLASSES, device=device).repeat(PER_CLASS)
    noise = torch.randn(len(labels), 4, scenes.SIZE, scenes.SIZE, generator=torch.Generator().manual_seed(9)).to(device)
    net, accuracy = metrics.train_features(device)
    reference = loaded(spec, checkpoint).to(device)
    trace: list[tuple[Tensor, Tensor, Tensor]] = []  # x_t, t, prediction along the 16-bit model's way
    want = task.sample(traced(runner(task, reference), trace), noise, labels, SAMPLER_STEPS)
    rng = torch.Generator(device=device).manual_seed(11)
    real = scenes.draw(labels, rng)
    results: dict[str, Any] = {
        "model": task.name, "parameters": sum(p.numel() for p in reference.parameters()), "pictures": len(labels),
        "sampler_steps": SAMPLER_STEPS, "classifier_accuracy": accuracy,
        "fp16": metrics.compare(net, want, real, labels), "variants": [],
    }  # fmt: skip
    save_pictures(work / "fp16.pt", want)
    calibrations: dict[float, Any] = {}
    chosen = rows if rows is not None else variants(amplify(spec, loaded(spec, checkpoint), 1.0) > 0)
    for variant in chosen:
        start = time.perf_counter()
        module = loaded(spec, checkpoint)
        if variant.outliers != 1:
            amplify(spec, module, variant.outliers)
        if variant.outliers not in calibrations:
            calibrations[variant.outliers] = calibration(task, module, trace, labels, work)
            if variant.outliers == 1:
                calibrations[1.0].save(work / "calib.safetensors")
        layers = make(spec, module, calibrations[variant.outliers], variant, work)
        quantized = time.perf_counter() - start
        predict = runner(task, module.to(device))
        got = task.sample(predict, noise, labels, SAMPLER_STEPS)
        row = {
            "key": variant.key, "label": variant.label, "format": variant.format, "rank": variant.rank,
            "outliers": variant.outliers, "layers_db": layers, "output_db": along(predict, trace, labels),
            "quantize_s": quantized, **metrics.compare(net, got, want, labels),
        }  # fmt: skip
        results["variants"].append(row)
        save_pictures(work / f"{variant.key}.pt", got)
        print(f"{task.name} {variant.key:<24} layers {layers:5.1f} dB, output {row['output_db']:5.1f} dB, "
              f"PSNR {row['psnr_db']:5.1f} dB, {time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
        (work / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def loaded(spec: Any, checkpoint: Path) -> nn.Module:
    """The trained model in its act dtype on the CPU."""
    module = spec.build(device="cpu")
    module.load_state_dict(load_file(checkpoint))
    return module  # type: ignore[no-any-return]


def runner(task: Any, module: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The model as a prediction in f32; it runs in its act dtype."""
    spec = task.spec
    flat = spec.wrap(module)

    @torch.inference_mode()
    def predict(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        inputs = zip(spec.inputs, task.inputs(x, t, labels), strict=True)
        return task.output(flat(*(v.to(io.torch_dtype(spec.torch_dtype)) for io, v in inputs))).float()  # type: ignore[no-any-return]

    return predict


def traced(predict: Any, trace: list[tuple[Tensor, Tensor, Tensor]]) -> Any:
    """`predict` that remembers every call."""

    def remembering(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        y = predict(x, t, labels)
        trace.append((x, t, y))
        return y  # type: ignore[no-any-return]

    return remembering


def along(predict: Any, trace: list[tuple[Tensor, Tensor, Tensor]], labels: Tensor) -> float:
    """SQNR of the predictions at every third point the 16-bit model went through, dB over all of them together."""
    noise = energy = 0.0
    for x, t, want in trace[::3]:
        noise += float((predict(x, t, labels) - want).square().sum())
        energy += float(want.square().sum())
    return float(10 * torch.log10(torch.tensor(energy / max(noise, 1e-30))))


def calibration(task: Any, module: nn.Module, trace: list[Any], labels: Tensor, work: Path) -> Any:
    """Calibrate on inputs of the real sampling: other points of it are what the pictures are judged by."""
    picks = torch.linspace(0, len(trace) - 1, CALIBRATION_SAMPLES).round().long().tolist()
    stacked: dict[str, list[Tensor]] = {io.name: [] for io in task.spec.inputs}
    for i, step in enumerate(picks):
        x, t, _ = trace[step]
        one = slice(i, i + 1)
        for io, value in zip(task.spec.inputs, task.inputs(x[one], t[one], labels[one]), strict=True):
            stacked[io.name].append(value.float().cpu())
    file = work / "calibration-inputs.safetensors"
    save_file({name: _stack(values, name, task) for name, values in stacked.items()}, file)
    return calibrate.collect(module, task.spec, data=file, tokens_per_group=1024)


def _stack(values: list[Tensor], name: str, task: Any) -> Tensor:
    io = next(io for io in task.spec.inputs if io.name == name)
    return (torch.cat(values) if has_batch(io) else values[0]).contiguous()


def save_pictures(path: Path, pictures: Tensor) -> None:
    """Red, green and blue as bytes; coverage is left out."""
    torch.save(((pictures[:, :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu(), path)
