"""``svdq-trt verify``: check that an engine folder is what its manifest says."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.artifact.manifest_fields import overview
from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say
from svdq_trt.contract.archs import parse_arch

NAME = "verify"
HELP = "check an engine folder: manifest, arch, plugin, digests"
EPILOG = f"""\
manifest.json holds (docs/manifest.md has the parts):
{overview()}
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder with manifest.json")
    p.add_argument("--arch", metavar="SM", help="the GPU it must be for")


def run(args: argparse.Namespace) -> int:
    from svdq_trt.artifact import manifest, pipeline_file
    from svdq_trt.engine import plugin_lib

    arch, version = None if args.arch is None else parse_arch(args.arch), plugin_lib.find().version
    parts = pipeline_file.parts_in(args.engine)
    for folder in (args.engine, *(args.engine / part for part in parts or ())):
        data = manifest.verify(folder, arch, version, manifest.PARTS)
        backend = f"{data.backend.name} {data.backend.version}" if data.backend else "an unnamed TensorRT"
        rank = f" rank {data.rank}" if data.quantized else ""
        say(f"{folder}: {data.model} for {data.arch}, {data.format}{rank}, {backend}: manifest and digests agree")
        if data.onnx.data is None:
            say(f"{folder / data.onnx.file}: only its size was compared, as its manifest has no digest of it")
    if parts is not None:
        pipeline, _ = pipeline_file.verify(args.engine)
        say(f"{args.engine / pipeline_file.NAME}: {pipeline.pipeline}: {len(parts) + 1} engines belong together")
    return EXIT_OK
