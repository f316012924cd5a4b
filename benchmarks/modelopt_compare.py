#!/usr/bin/env python3
"""Layer-output SQNR of our quantizer compared with NVIDIA ModelOpt's SVDQuant: same format, rank, tokens and layers.

    pip install nvidia-modelopt
    python benchmarks/modelopt_compare.py                              # int4, layers of random models with outliers
    python benchmarks/modelopt_compare.py --trained trained/work       # layers that trained_models.py left there
    python benchmarks/modelopt_compare.py --format int4 nvfp4          # ModelOpt's nvfp4 needs a GPU

Both see every other token and are judged on the rest. ModelOpt quantizes each linear by itself, as its own recipes do;
ours takes the node, whose members share smoothing and lora_down. `int4` in ModelOpt is its svdquant algorithm on our
format's groups of 64, activations dynamic; `nvfp4` its shipped NVFP4_SVDQUANT_DEFAULT_CFG. Ours runs in processes
on the CPU, and so does ModelOpt's int4, for which it would compile an extension on a GPU; its nvfp4 runs on the GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import script
import torch
from quantizer_ladder import LAYERS
from torch import Tensor, nn
from trained.linears import Unpacked
from trained.tasks import TASKS
from trained.variants import calibration_file, loaded

from svdq_trt import calibrate
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.checkpoint.random_weights import RandomWeights
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import ModelSpec, get_model, member_tensors
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import PRESETS

OURS = ("fast", "default")
NAMES = (*OURS, "modelopt")
MAIN_THREADS = 4  # of the process that runs ModelOpt; the other cores have a process of one thread each


@dataclass(frozen=True)
class Layer:
    """Linears [N_i, K] that read the same tokens [T, K]; they are quantized with `seen`, and judged by the rest."""

    name: str
    weights: list[Tensor]
    x: Tensor

    def __post_init__(self) -> None:
        # Sending a tensor to a process moves its memory, from another thread, under ModelOpt's eyes: move it now.
        for tensor in (*self.weights, self.x):
            tensor.share_memory_()

    @property
    def seen(self) -> Tensor:
        """[T / 2, K]."""
        return self.x[::2]

    @property
    def fresh(self) -> Tensor:
        """[T / 2, K]."""
        return self.x[1::2]

    def error_db(self, y: Tensor) -> float:
        """SQNR of outputs [T / 2, N] for the fresh tokens."""
        fresh = self.fresh.float().to(y.device)
        want = fresh @ torch.cat([w.float() for w in self.weights]).to(y.device).T
        return decibels(float((y.float() - want).square().sum() / want.square().sum()))


def main() -> int:
    args = _arguments()
    torch.set_num_threads(MAIN_THREADS)
    os.environ["OMP_NUM_THREADS"] = "1"  # theirs, from their start
    results, failed = [], False
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for source, layers in _sources(args):
            for fmt in args.format:
                try:
                    results.append(_compare(source, layers, fmt, args, pool))
                except Exception:  # the other comparisons still count
                    traceback.print_exc()
                    failed = True
                if args.out:
                    args.out.write_text(json.dumps({"rank": args.rank, "results": results}, indent=1) + "\n")
    return 1 if failed else 0


def _compare(source: str, layers: list[Layer], fmt: str, args: argparse.Namespace, pool: Executor) -> dict[str, Any]:
    """Compare every layer's dB, ours and ModelOpt's; prints the means."""
    begin = time.perf_counter()
    ours = {name: [pool.submit(_ours, layer, fmt, args.rank, name) for layer in layers] for name in OURS}
    got = {"modelopt": _modelopt(layers, fmt, args.rank, "cuda" if fmt == "nvfp4" else "cpu")}  # meanwhile
    got |= {name: [future.result() for future in futures] for name, futures in ours.items()}
    rows = [{"layer": layer.name, **{n: round(got[n][i], 2) for n in NAMES}} for i, layer in enumerate(layers)]
    mean = {name: round(sum(got[name]) / len(layers), 2) for name in NAMES}
    better = sum(a > b for a, b in zip(got["default"], got["modelopt"], strict=True))
    print(
        f"\n{source}, {fmt}, rank {args.rank}: dB on held-out tokens, {time.perf_counter() - begin:.0f} s\n{'':<58}"
        + "".join(f"{n:>10}" for n in NAMES)
    )
    for row in (*(rows if args.verbose else ()), {"layer": "mean dB (geometric mean of the error)", **mean}):
        print(f"{row['layer']:<58}" + "".join(f"{row[n]:10.2f}" for n in NAMES))
    print(f"default is better on {better} of {len(rows)} layers", flush=True)
    return {"source": source, "format": fmt, "mean_db": mean, "default_better": better, "layers": rows}


def _ours(layer: Layer, fmt: str, rank: int, preset: str) -> float:
    q = quantize_group(
        layer.weights,
        [None] * len(layer.weights),
        layer.seen,
        FORMATS[fmt],
        rank,
        act_dtype=layer.x.dtype,
        preset=PRESETS[preset],
    )
    return layer.error_db(Unpacked(q.module())(layer.fresh))


def _modelopt(layers: list[Layer], fmt: str, rank: int, device: str) -> list[float]:
    """Quantize by ModelOpt: its own modules, run in f32; all linears in one call, as it treats each by itself."""
    linears, tokens = nn.ModuleList(), []
    for layer in layers:
        seen = layer.seen.float().to(device)
        for w in layer.weights:
            linear = nn.Linear(w.shape[1], w.shape[0], bias=False, device=device)
            linear.weight.data = w.detach().to(device, torch.float32, copy=True)  # changed in place
            linears.append(linear)
            tokens.append(seen)

    def calibrate_all(modules: nn.ModuleList) -> None:
        for linear, x in zip(modules, tokens, strict=True):
            linear(x)

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as mtq

        mtq.quantize(linears, _config(fmt, rank, mtq), calibrate_all)
        made, out = iter(linears), []
        for layer in layers:
            fresh = layer.fresh.float().to(device)
            out.append(layer.error_db(torch.cat([next(made)(fresh) for _ in layer.weights], 1)))
    return out


def _config(fmt: str, rank: int, mtq: Any) -> dict[str, object]:
    if fmt == "nvfp4":
        config: dict[str, object] = copy.deepcopy(mtq.NVFP4_SVDQUANT_DEFAULT_CFG)
    else:
        block = {"num_bits": 4, "block_sizes": {-1: 64}}
        config = {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": block},
                {"quantizer_name": "*input_quantizer", "cfg": {**block, "type": "dynamic"}},
            ]
        }
    return config | {"algorithm": {"method": "svdquant", "lowrank": rank}}


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, list[Layer]]]:
    """Yield name and layers of every comparison."""
    for name in args.model if args.trained else ():
        work = args.trained / name
        if not calibration_file(work, 1).exists():
            print(f"\n{work}: nothing trained there")
            continue
        module = loaded(TASKS[name].spec, work / "model.safetensors")
        yield f"trained {name}", _layers(TASKS[name].spec, module, Calibration.load(calibration_file(work, 1)))
    for name in args.model if not args.trained else ():
        spec = get_model(name)
        module = spec.build()
        random = RandomWeights(spec, module, 0)
        module = spec.build(device="cpu")
        module.load_state_dict({key: random.read(key) for key in random.names}, strict=False)
        yield f"random {name}", _layers(spec, module, calibrate.collect(module, spec, tokens_per_group=args.tokens))
    if args.synthetic:
        pairs = ((name, make(512, 1024, 1024)) for name, make in LAYERS.items())
        yield "synthetic layers", [Layer(name, [w], x.half()) for name, (w, x) in pairs]


def _layers(spec: ModelSpec, module: nn.Module, calibration: Calibration) -> list[Layer]:
    layers = []
    for group in spec.groups(module):
        if not group.weight_only:
            weights = [w.contiguous() for w in member_tensors(module, group)[0]]
            layers.append(Layer(group.node, weights, calibration.x[group.node]))
    return layers


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--format", nargs="+", default=["int4"], choices=("int4", "nvfp4"))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--model", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--trained", type=Path, metavar="DIR", help="--work of trained_models.py, instead of random models")
    p.add_argument("--synthetic", action="store_true", help="also three synthetic layers of 512 x 1024")
    p.add_argument("--tokens", type=int, default=512, help="of random models, per node, half held out (default 512)")
    p.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) - MAIN_THREADS, 1), metavar="N")
    p.add_argument("--out", type=Path, metavar="JSON")
    p.add_argument("--verbose", action="store_true", help="print every layer, not the means alone")
    return p.parse_args()


if __name__ == "__main__":
    script.run(main)
