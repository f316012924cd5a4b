"""Small quantized models and synthetic nunchaku files."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from svdq_trt import calibrate
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import quantize_model


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """(model, format, rank) -> the artifact's path; each made once. Several ranks: the nodes take them in turn.

    `signed`: without u4 codes after GELU.
    """
    made = {}

    def make(model: str, fmt: str, rank: int | tuple[int, ...] = 16, signed: bool = False):
        key = (model, fmt, rank, signed)
        if key not in made:
            torch.set_num_threads(1)
            spec = get_model(model)
            module = load(spec, random_seed=5)
            groups = spec.groups(module)
            if signed:
                groups = [replace(g, x_from=Activation.NONE) for g in groups]
            ranks = rank if isinstance(rank, int) else {g.node: r for g, r in zip(groups, itertools.cycle(rank))}
            data = calibrate.collect(module, spec, groups, data=None, progress=lambda *_: None)
            out = tmp_path_factory.mktemp("artifacts") / f"{model}-{fmt}-{rank}-{signed}.safetensors"
            quantize_model(
                module, spec, groups, data, FORMATS[fmt], ranks, get_preset("fast"), out, "k" * 20, lambda *_: None
            )
            made[key] = out
        return made[key]

    return make
