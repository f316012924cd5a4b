"""Thousands of damaged files: each is refused with an SvdqError, or imported into a model of the right shapes."""

from __future__ import annotations

import json
import random
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import SvdqError
from svdq_trt.checkpoint import open_weights
from svdq_trt.interop import convert, linears_export, w4a4
from svdq_trt.interop.layouts import IN_ROWS, NEW, OLD
from svdq_trt.interop.separate import separate
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.nn.restore import restore_model
from tests.cpu.interop.toy_flux import BLOCK, SPEC, checkpoint

COUNT = 500  # files of each kind
SECONDS = 10.0  # of the processor for one file: what a hang would exceed
DTYPES = ["F16", "BF16", "F32", "F64", "I8", "U8", "I16", "I32", "I64", "F8_E4M3", "F8_E5M2", "BOOL", "X9", "", 3, None]
SIZES = [
    0,
    1,
    2,
    3,
    15,
    16,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    1 << 16,
    1 << 31,
    1 << 32,
    1 << 62,
    (1 << 63) - 1,
    1 << 64,
    -1,
    1.5,
    "8",
    None,
    [],
    True,
]
JSONS = [
    "",
    "{",
    "[]",
    "null",
    "0",
    '"x"',
    "{}",
    "[" * 20_000,
    '{"a":' * 5_000,
    '{"weight": 3}',
    '{"weight": {"dtype": []}}',
    '{"rank": -1}',
    '{"rank": 1e999}',
    '{"method": null}',
    '{"channels": [1e309]}',
    '{"layers": {"a": {"b": "c"}}}',
    '{"_class_name": {}}',
    '{"quantization_config": []}',
    "\u0000",
    "NaN",
]


def modelopt() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """An NVFP4_SVD export of the toy, as one file."""
    g = torch.Generator().manual_seed(0)
    module, tensors = SPEC.build(device="cpu"), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith(BLOCK):
            n, k = layer.weight.shape
            tensors |= {
                f"{name}.weight": torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8),
                f"{name}.weight_scale": torch.rand(n, k // 16, generator=g).to(torch.float8_e4m3fn),
                f"{name}.weight_scale_2": torch.tensor(0.01),
                f"{name}.input_scale": torch.tensor(0.02),
                f"{name}.pre_quant_scale": torch.rand(k, generator=g).bfloat16() + 0.5,
                f"{name}.svdquant_lora_a": torch.randn(8, k, generator=g).bfloat16(),
                f"{name}.svdquant_lora_b": torch.randn(n, 8, generator=g).bfloat16(),
                f"{name}.bias": torch.randn(n, generator=g).bfloat16(),
            }
    rest = {name: torch.randn(p.shape, generator=g).bfloat16() for name, p in module.state_dict().items()}
    config = {"quantization_config": {"quant_algo": "NVFP4_SVD", "config_groups": {"group_0": {"lora_rank": 8}}}}
    return {name: rest[name] for name in rest if name not in tensors} | tensors, {"config": json.dumps(config)}


def by_linears(kind: str, loaded: svdq_file.Artifact) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The toy in a format of single linears; Nunchaku Lite's has adaLN alone: the toy is narrower than a tile."""
    if kind == "comfy-kitchen":
        done = linears_export.write_comfy(loaded, SPEC)
        return done.tensors, done.metadata
    if kind == "nunchaku-lite":
        done = linears_export.write_lite(loaded, SPEC)
        return done.tensors, done.metadata | {"config": done.files["config.json"]}
    parts = separate(loaded, SPEC, unsigned=False)
    norm = f"{BLOCK}.norm1.linear"
    parts.to_dense(norm, torch.bfloat16)
    layout, tensors = (NEW if kind == "cache-dit" else IN_ROWS), {}
    for name, weights in parts.linears.items():
        rows = Rows.of((weights.n,), tile=layout.tile)
        tensors |= w4a4.write(name, w4a4.Linear4(weights, {}), layout, rows, True, tensor_scale=False).tensors
    if kind == "cache-dit":
        said = {"version": 2, "precision": "int4", "quantized_layer_names": [*parts.linears]}
        return tensors, {"cache_dit_svdq_ptq": json.dumps(said)}
    config = {"quantization_config": {"quant_method": "svdquant", "rank": 16}}
    return tensors | parts.dense, {"config": json.dumps(config)}


LINEARS = ("nunchaku-lite", "comfy-kitchen", "cache-dit", "vllm-omni")


def whole_file(kind: str, folder: Path) -> bytes:
    if kind in LINEARS:
        (folder / "n.safetensors").write_bytes(whole_file("int4-new", folder))
        convert.import_checkpoint(folder / "n.safetensors", SPEC, folder / "n.svdq")
        tensors, metadata = by_linears(kind, svdq_file.load(folder / "n.svdq"))
    elif kind == "modelopt":
        tensors, metadata = modelopt()
    else:
        keys = OLD if "old" in kind else NEW
        tensors, metadata, _ = checkpoint("fp4" in kind, keys, keys is OLD)
        own = {f"{BLOCK}.mlp_fc2": {"signed": True, "bias": "eJw="}}
        metadata["svdq_trt"] = json.dumps({"version": 1, "layers": own})
    return save(tensors, metadata)


def split(file: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def join(header: dict, data: bytes) -> bytes:
    body = json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


def mutate(rng: random.Random, file: bytes) -> bytes:
    """One to three damages; each kind alone passes the checks before the one it is meant for."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        file = rng.choice(MUTATIONS)(rng, file)
    return file


def on_header(change):
    def apply(rng: random.Random, file: bytes) -> bytes:
        try:
            header, data = split(file)
            names = [n for n in header if n != "__metadata__"]
            return join(*change(rng, header, data, rng.choice(names)))
        except (ValueError, struct.error, IndexError, KeyError, TypeError, AttributeError):
            return file  # damaged beyond that by the mutation before

    return apply


def dtype(rng, header, data, name):
    header[name]["dtype"] = rng.choice(DTYPES)
    return header, data


def same_size_dtype(rng, header, data, name):
    """Passes safetensors' own checks."""
    same = {
        "F16": ["BF16", "I16"],
        "BF16": ["F16", "I16"],
        "I8": ["U8", "F8_E4M3", "BOOL"],
        "I32": ["F32", "U32"],
        "F32": ["I32", "U32"],
        "U8": ["I8", "F8_E4M3"],
        "F8_E4M3": ["I8", "U8", "F8_E5M2"],
    }
    header[name]["dtype"] = rng.choice(same[header[name]["dtype"]])
    return header, data


def shape(rng, header, data, name):
    dims = header[name]["shape"]
    choice = rng.randrange(4)
    if choice == 0:
        dims[rng.randrange(len(dims))] = rng.choice(SIZES)
    elif choice == 1:
        header[name]["shape"] = [rng.choice(SIZES) for _ in range(rng.randrange(6))]
    else:  # as many elements: only our own checks can tell
        flat = 1
        for d in dims:
            flat *= d
        parts = [p for p in (1, 2, 4, 8, 16, 32, 64) if flat % p == 0]
        p = rng.choice(parts)
        header[name]["shape"] = rng.choice([[flat // p, p], [p, flat // p], [flat], [1, *dims], [*dims, 1], dims[::-1]])
    return header, data


def offsets(rng, header, data, name):
    span = header[name]["data_offsets"]
    if rng.random() < 0.5:
        span[rng.randrange(2)] = rng.choice([*SIZES, len(data), len(data) + 1])
    else:
        header[name]["data_offsets"] = header[rng.choice([n for n in header if n != "__metadata__"])]["data_offsets"]
    return header, data


def names(rng, header, data, name):
    entry = header.pop(name)
    choice = rng.randrange(5)
    if choice == 1:
        header[name + rng.choice(("x", ".weight", "_orig", "\u0000", "\U0001f600"))] = entry
    elif choice == 2:
        other = rng.choice([n for n in header if n != "__metadata__"])
        header[name], header[other] = header[other], entry  # both keep a place in the data
    elif choice == 3:
        header[name.replace("qkv_proj", "attn.to_qkv").replace("lora_", "proj_")] = entry
    elif choice == 4:
        header[name] = rng.choice([None, 3, [], {}, "x", {**entry, "extra": 1}])
    return header, data


def metadata(rng, header, data, name):
    strings = header.setdefault("__metadata__", {})
    key = rng.choice([*strings, "config", "quantization_config", "svdq_trt", "svdq", "format"])
    strings[key] = rng.choice(JSONS) if rng.random() < 0.8 else rng.choice([3, None, {}, []])
    if rng.random() < 0.05:
        header["__metadata__"] = rng.choice([3, [], "x", None])
    return header, data


def one_value(rng, header, data, name):
    """Other contents, right shapes: NaN, infinities, zeros, garbage in one tensor."""
    start, stop = header[name]["data_offsets"]
    fill = rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80\x7f", b"\x00\x7c", rng.randbytes(16)])
    at = rng.randrange(start, stop)
    end = min(stop, at + rng.choice((1, 2, 16, 4096)))
    return header, data[:at] + (fill * (end - at))[: end - at] + data[end:]


def length(rng, file):
    said = rng.choice([0, 1, 2, 7, 99_999_999, 100_000_001, 1 << 63, (1 << 64) - 1, len(file)])
    return struct.pack("<Q", said) + file[8:]


def truncate(rng, file):
    return file[: rng.randrange(len(file) + 1)]


def grow(rng, file):
    return file + rng.randbytes(rng.choice((1, 8, 4096)))


def header_bytes(rng, file):
    size = struct.unpack("<Q", file[:8])[0] if len(file) >= 8 else 0
    out = bytearray(file)
    for _ in range(rng.randint(1, 4)):
        if len(out) > 8:
            out[rng.randrange(8, max(9, min(len(out), 8 + size % (1 << 20))))] = rng.randrange(256)
    return bytes(out)


HEADER = (dtype, same_size_dtype, shape, shape, offsets, names, metadata, metadata, one_value, one_value)
MUTATIONS = [*map(on_header, HEADER), length, truncate, grow, header_bytes]


def shapes_of(tensors) -> dict:
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items() if "lora_" not in name}


def own_header(rng, header, data, name):
    """A node of our own artifact with one field changed."""
    meta = json.loads(header["__metadata__"]["svdq"])
    node = rng.choice(meta["nodes"])
    key = rng.choice([*node])
    node[key] = rng.choice([*SIZES, "x", node["name"], [node["name"]], {}, 64, 192, 0.5])
    if rng.random() < 0.2:
        meta["nodes"] += [dict(rng.choice(meta["nodes"]))]
    header["__metadata__"]["svdq"] = json.dumps(meta)
    return header, data


def test_damaged_artifacts_of_our_own(tmp_path):
    """What build --quantized opens without converting it."""
    path, out = tmp_path / "x.safetensors", tmp_path / "a.safetensors"
    path.write_bytes(whole_file("int4-old", tmp_path))
    convert.import_checkpoint(path, SPEC, out)
    file, rng, whole = out.read_bytes(), random.Random("own"), shapes_of(svdq_file.load(out).tensors)
    refused = taken = 0
    for _ in range(COUNT):
        damaged = mutate(rng, file) if rng.random() < 0.5 else on_header(own_header)(rng, file)
        path.write_bytes(damaged)
        try:
            loaded = svdq_file.load(path)
            restore_model(loaded, SPEC)
        except SvdqError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            taken += 1
            assert shapes_of(loaded.tensors) == whole
    assert refused > COUNT / 2 and taken > COUNT / 50


@pytest.mark.parametrize("kind", ["int4-old", "fp4-new", "modelopt", *LINEARS])
def test_damaged_files(tmp_path, kind):
    file, rng = whole_file(kind, tmp_path), random.Random(f"fuzz {kind}")
    path, out = tmp_path / "x.safetensors", tmp_path / "a.safetensors"
    path.write_bytes(file)
    rest = open_weights(SPEC, random_seed=0) if kind == "cache-dit" else None
    assert convert.import_checkpoint(path, SPEC, out, rest).kind == {"int4-old": "nunchaku", "fp4-new": "nunchaku"}.get(
        kind, kind
    )
    whole, nodes = shapes_of(svdq_file.load(out).tensors), len(svdq_file.load(out).nodes)
    refused = taken = 0
    for _ in range(COUNT):
        damaged = mutate(rng, file)
        path.write_bytes(damaged)
        out.unlink(missing_ok=True)
        start = time.process_time()
        try:
            convert.describe(path, SPEC)
            convert.import_checkpoint(path, SPEC, out, rest)
        except SvdqError as error:  # anything else, MemoryError and RecursionError too, fails the test
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, error
            assert not out.exists()
        else:
            taken += 1
            loaded = svdq_file.load(out)
            restore_model(loaded, SPEC)
            if len(loaded.nodes) == nodes:  # more, where a damaged q is smoothed in its own way
                assert shapes_of(loaded.tensors) == whole
            floats = [t for t in loaded.tensors.values() if t.is_floating_point()]
            assert all(bool(t.isfinite().all()) for t in floats)
        assert time.process_time() - start < SECONDS
    assert refused > COUNT / 2 and taken > COUNT / 50  # both paths are exercised
