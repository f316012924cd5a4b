#!/usr/bin/env bash
# safetensors 0.8.0, torch 2.13.0
#
# Expected: what safetensors.torch saves it also loads, by each of its ways: load_file, load (from bytes), safe_open with get_tensor and get_slice.
# What happens: float4_e2m1fn_x2 (two codes per byte) and float8_e8m0fnu, the types of NVFP4 and MXFP4 files, are saved and come back from
#   load_file, but `load` of the same bytes raises KeyError. For float4 get_slice raises too: it gives the shape in codes, twice torch's last
#   dimension, and then can't reshape its own bytes to that.
# Why it matters: `load` and `get_slice` are the ways that do not need the whole file: for streaming layer by layer, or a rank's rows. They
#   fail only on the formats that were made to save memory. Store such codes as int8 or uint8, with their format in the metadata.
source "$(dirname "$0")/common.sh"
install safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
run_python <<'PY'
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from seen import seen


def outcome(read):
    """The shape that `read` gives, or the error's class."""
    try:
        return tuple(read().shape)
    except Exception as error:
        return type(error).__name__


for name, from_bytes, slice_shape, rows in (
    ("float8_e4m3fn", (4, 8), [4, 8], (2, 8)),
    ("float8_e8m0fnu", "KeyError", [4, 8], (2, 8)),
    ("float4_e2m1fn_x2", "KeyError", [4, 16], "RuntimeError"),
):
    saved = torch.arange(32, dtype=torch.uint8).reshape(4, 8).view(getattr(torch, name))
    save_file({"codes": saved}, "file.safetensors")
    seen(f"{name} {tuple(saved.shape)}, load_file", outcome(lambda: load_file("file.safetensors")["codes"]), (4, 8))
    seen("    load", outcome(lambda: load(Path("file.safetensors").read_bytes())["codes"]), from_bytes)
    with safe_open("file.safetensors", "pt") as file:
        part = file.get_slice("codes")
        seen("    get_slice: shape", part.get_shape(), slice_shape)
        seen("    get_slice: two rows", outcome(lambda: part[:2]), rows)
PY
