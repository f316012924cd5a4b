#!/usr/bin/env python3
"""Layer-output SQNR of our quantizer beside NVIDIA ModelOpt's SVDQuant: same format, rank, tokens and layers.

    pip install nvidia-modelopt
    python benchmarks/modelopt_compare.py                                        # layers of quantizer_ladder.py
    python benchmarks/modelopt_compare.py --model sdxl-tiny --trained DIR        # what trained_models.py left in DIR
    python benchmarks/modelopt_compare.py --format nvfp4 --device cuda           # ModelOpt's nvfp4 needs a GPU

Both see every other token and are judged on the rest. ModelOpt quantizes each linear by itself, as its own recipes do;
ours takes the node, whose linears share smoothing and lora_down. `int4` in ModelOpt is its svdquant algorithm on the
groups of 64 of our format, activations dynamic; `nvfp4` its shipped NVFP4_SVDQUANT_DEFAULT_CFG.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from quantizer_ladder import LAYERS
from torch import Tensor, nn

from svdq_trt import SVDQLinear
from svdq_trt.quantize.ladder import decibels
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.spec.formats import FORMATS

OURS = ("fast", "default")


class Layer(NamedTuple):
    """Linears [N_i, K] that read the same tokens [T, K]."""

    name: str
    weights: list[Tensor]
    x: Tensor


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    layers = list(_of_model(args.model, args.trained) if args.trained else _synthetic())
    names = [*OURS, "modelopt"]
    print(f"{args.format}, rank {args.rank}: dB on held-out tokens\n{'layer':<58}" + "".join(f"{n:>10}" for n in names))
    rows = []
    for layer in layers:
        layer = Layer(layer.name, [w.to(args.device) for w in layer.weights], layer.x.to(args.device))
        seen, fresh = layer.x[::2], layer.x[1::2]
        want = fresh.float() @ torch.cat([w.float() for w in layer.weights]).T
        got = {name: _ours(layer, seen, fresh, args, name) for name in OURS}
        got["modelopt"] = _modelopt(layer, seen, fresh, args)
        row = {n: decibels(float((y - want).square().sum() / want.square().sum())) for n, y in got.items()}
        rows.append({"layer": layer.name, **row})
        print(f"{layer.name:<58}" + "".join(f"{row[n]:10.2f}" for n in names), flush=True)
    mean = {n: sum(float(r[n]) for r in rows) / len(rows) for n in names}
    better = sum(r["default"] > r["modelopt"] for r in rows)
    print(f"{'mean dB (geometric mean of the error)':<58}" + "".join(f"{mean[n]:10.2f}" for n in names))
    print(f"default is better on {better} of {len(rows)} layers")
    if args.out:
        args.out.write_text(json.dumps({"format": args.format, "rank": args.rank, "mean_db": mean, "layers": rows},
                                       indent=1) + "\n")  # fmt: skip


def _ours(layer: Layer, seen: Tensor, fresh: Tensor, args: argparse.Namespace, preset: str) -> Tensor:
    q = quantize_group(layer.weights, [None] * len(layer.weights), seen, FORMATS[args.format], args.rank,
                       act_dtype=layer.x.dtype, preset=PRESETS[preset])  # fmt: skip
    return SVDQLinear.from_quantized(q).cpu()(fresh.cpu()).float().to(fresh.device)


def _modelopt(layer: Layer, seen: Tensor, fresh: Tensor, args: argparse.Namespace) -> Tensor:
    """Its own modules, run in f32."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as mtq

        outputs = []
        for w in layer.weights:
            linear = nn.Linear(w.shape[1], w.shape[0], bias=False, device=w.device)
            linear.weight.data = w.detach().float().clone()
            model = nn.Sequential(linear)
            with torch.no_grad():
                mtq.quantize(model, _config(args.format, args.rank, mtq), lambda m: m(seen.float()))
                outputs.append(model(fresh.float()))
    return torch.cat(outputs, 1)


def _config(fmt: str, rank: int, mtq: object) -> dict[str, object]:
    if fmt == "nvfp4":
        config: dict[str, object] = copy.deepcopy(mtq.NVFP4_SVDQUANT_DEFAULT_CFG)  # type: ignore[attr-defined]
    else:
        block = {"num_bits": 4, "block_sizes": {-1: 64}}
        config = {"quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": block},
            {"quantizer_name": "*input_quantizer", "cfg": {**block, "type": "dynamic"}},
        ]}  # fmt: skip
    return config | {"algorithm": {"method": "svdquant", "lowrank": rank}}


def _synthetic() -> Iterator[Layer]:
    for name, make in LAYERS.items():
        w, x = make(512, 1024, 1024)
        yield Layer(name, [w], x.half())


def _of_model(model: str, folder: Path) -> Iterator[Layer]:
    from safetensors.torch import load_file

    from svdq_trt.calibrate import Calibration
    from svdq_trt.models import get_model

    spec = get_model(model)
    module = spec.build()
    weights = load_file(folder / model / "model.safetensors")
    groups = [g for g in spec.groups(module) if not g.weight_only]
    calibration = Calibration.load(folder / model / "calib.safetensors")
    for group in groups:
        x = calibration.x[group.node]
        start, stop = group.columns or (0, x.shape[1])
        yield Layer(group.node, [weights[f"{m}.weight"][:, start:stop] for m in group.members], x)


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--format", default="int4", choices=("int4", "nvfp4"))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--model", default="sdxl-tiny")
    p.add_argument("--trained", type=Path, metavar="DIR", help="folder that trained_models.py wrote")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--out", type=Path, metavar="JSON")
    return p.parse_args()


if __name__ == "__main__":
    main()
